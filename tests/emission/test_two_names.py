"""One module under two names, or called in two ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vitrewrite as vr
from tests.emission.emitted import check


class Position(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj, self.shift = nn.Linear(8, 8), nn.Parameter(torch.randn(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x).tanh() + self.shift + torch.arange(8) * 0.25


class Use(nn.Module):
    def __init__(self, position: nn.Module) -> None:
        super().__init__()
        self.position, self.fc = position, nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.fc(x) + self.position(x)
        return y


class Shared(nn.Module):
    """A module of its own that only others call."""

    def __init__(self, *, also: bool) -> None:
        super().__init__()
        self.position, self.also = Position(), also
        self.blocks = nn.ModuleList(Use(self.position) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.position(x) if self.also else x


@pytest.mark.parametrize("also", [False, True])
def test_a_module_is_called_by_any_of_its_names(also: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    check(Shared(also=also), tmp_path / "out")


class Noise(nn.Module):
    """Scales each sample, whatever the rank."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        kept = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(0.5)
        return x * kept.div_(0.5)


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.layer_norm(x, self.weight.shape, self.weight) + x.mean(-1, True)


class Ranks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.noise, self.norm, self.fc = Noise(), Norm(), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> Any:
        y = self.noise(self.norm(self.fc(x)))
        images = self.norm(y.reshape(y.shape[0], 1, -1, 8))
        return self.noise(images).flatten(1, 2) + y


def test_a_module_is_called_with_tensors_of_two_ranks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Ranks(), torch.randn(3, 4, 8)
    captured = vr.capture(model, x)
    found = []
    for module in (model.train(), captured.train()):
        torch.manual_seed(2)
        found.append(module(x))
    assert torch.equal(*found)
    check(model.eval(), tmp_path / "out", x)
