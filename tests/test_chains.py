"""Chains of layers: one loop over all of them, broken where a line would be too long."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import vitrewrite as vr

DEPTH = 5


class Chain(nn.Module):
    """Layers of one list, each fed by the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(DEPTH))
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * self.scale
        for layer in self.layers:
            x = layer(x)
        return x - self.scale


def test_a_chain_is_one_loop_over_all_of_it() -> None:
    captured: Any = vr.capture(Chain(), torch.zeros(2, 4))
    text = captured.printed.text
    assert [line.strip() for line in text.splitlines() if "for " in line and "in self" in line] == [
        "for layer in self.layers:"
    ]


class Shifted(nn.Module):
    """A chain whose layers take another value besides."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Shift() for _ in range(DEPTH))

    def forward(self, x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, by)
        return x


class Shift(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        return x * self.scale + by


@pytest.mark.parametrize("length", range(72, 79))
def test_a_call_in_a_loop_is_broken_where_it_would_be_too_long(length: int) -> None:
    name = "n" * length
    space = {"torch": torch, "Shifted": Shifted}
    lines = [f"class Long(Shifted):\n    def forward(self, x, {name}):",
             "        for layer in self.layers:", f"            x = layer(x, {name})",
             "        return x"]  # fmt: skip
    exec("\n".join(lines), space)
    model: Any = space["Long"]
    captured: Any = vr.capture(model(), (torch.zeros(2, 4), torch.zeros(4)))
    text = captured.printed.text
    assert "for layer in self.layers:" in text
    assert max(map(len, text.splitlines())) <= 100
    whole = f"            x = layer(x, {name})"
    assert (whole in text.splitlines()) == (len(whole) <= 100)
