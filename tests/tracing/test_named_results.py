"""What `x.max(dim=1)` and its like return: read by name, by number, unpacked, handed on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import vitrewrite as vr


class Model(nn.Module):
    def __init__(self, way: Callable[..., Any]) -> None:
        super().__init__()
        self.fc, self.largest, self.both = nn.Linear(6, 6), Largest(), Both()
        self.way = way

    def forward(self, x: torch.Tensor) -> Any:
        return self.way(self, self.fc(x))


class Largest(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return x.max(dim=1)


class Both(nn.Module):
    def forward(self, found: Any) -> torch.Tensor:
        result: torch.Tensor = found.values * 2 + found.indices
        return result


WAYS: dict[str, Callable[..., Any]] = {
    "values": lambda m, x: x.max(dim=1).values,
    "indices": lambda m, x: torch.topk(x, 2, dim=1).indices,
    "number": lambda m, x: x.min(1)[0],
    "unpacked": lambda m, x: torch.stack([*x.sort(dim=1, descending=True)][:1]),
    "own names": lambda m, x: x.aminmax(dim=1).max - x.aminmax(dim=1).min,
    "linear algebra": lambda m, x: torch.linalg.svd(x, full_matrices=False).S,
    "tests": lambda m, x: x.mode(1)[0] if isinstance(x.mode(1), tuple) else x,
    "returned": lambda m, x: x.median(dim=1),
    "in a dictionary": lambda m, x: {"best": x.kthvalue(2, dim=1), "x": x},
    "from a module": lambda m, x: m.largest(x).values,
    "through modules": lambda m, x: m.both(m.largest(x)),
    "a module's, returned": lambda m, x: m.largest(x),
}


@pytest.mark.parametrize("way", WAYS)
def test_named_results_are_what_torch_returns(way: str) -> None:
    torch.manual_seed(0)
    model = Model(WAYS[way]).eval()
    captured = vr.capture(model, torch.zeros(2, 4, 6))
    for shape in ((2, 4, 6), (3, 5, 6)):
        x = torch.randn(shape)
        want, got = model(x), captured(x)
        assert type(got) is type(want)
        found = zip(pytree.tree_leaves(want), pytree.tree_leaves(got), strict=True)
        assert all(torch.equal(a, b) for a, b in found)
