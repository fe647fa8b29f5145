"""Modules of several programs whose class is one: by what they are given, have, or yield unread."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.emission.emitted import check, loaded


class Attend(nn.Module):
    """Yields a second value; adds a mask if there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.out = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> Any:
        scores = self.fc(x)
        if mask is not None:
            scores = scores * 2
            scores = scores + mask
        return self.out(scores.softmax(-1)), scores


class Layer(nn.Module):
    """Does without a projection, a table or a mask, or not."""

    def __init__(self, *, wide: bool = False, masked: bool = False, number: int = 0) -> None:
        super().__init__()
        self.attend = Attend()
        self.proj = nn.Linear(8, 8) if wide else None
        mask = torch.arange(8.0) * number if masked else None
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        short = x
        if self.proj is not None:
            short = self.proj(x)
            short = short.relu()
        y, _ = self.attend(x, self.mask)
        return short + y


class Stack(nn.Module):
    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Keeper(nn.Module):
    """Reads the second value of one of its children."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attend() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, _ = self.layers[0](x)
        x, scores = self.layers[1](x)
        y, _ = self.layers[2](x, scores)
        return x + y


MODELS = {
    "a mask that some are given": (
        lambda: Stack([Layer(), Layer(masked=True, number=1), Layer(masked=True, number=2)]), 3,
    ),
    "a layer that some do without": (
        lambda: Stack([Layer(wide=True), Layer(), Layer(), Layer(wide=True)]), 3,
    ),
    "an output that some read": (Keeper, 2),
    "lists of several lengths": (
        lambda: Stack([Stack([nn.Linear(8, 8) for _ in range(n)]) for n in (1, 3, 4)]), 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(MODELS))
def test_one_class(name: str, tmp_path: Path) -> None:
    make, count = MODELS[name]
    torch.manual_seed(0)
    check(make(), tmp_path)
    text = (tmp_path / "model.py").read_text()
    assert len(re.findall(r"^class ", text, re.M)) == count, text


@pytest.mark.parametrize("name", sorted(MODELS))
def test_captured_again_it_is_the_same(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    check(MODELS[name][0](), tmp_path / "first")
    check(loaded(tmp_path / "first"), tmp_path / "second")
    first, second = ((tmp_path / n / "model.py").read_text() for n in ("first", "second"))
    assert first.partition('"""\n')[2] == second.partition('"""\n')[2]


def test_a_schedule_is_a_list_and_a_scale_a_root(tmp_path: Path) -> None:
    class Dropped(nn.Module):
        def __init__(self, rate: float) -> None:
            super().__init__()
            self.fc, self.drop = nn.Linear(8, 8), nn.Dropout(rate)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.drop(self.fc(x * 32**-0.5))
            return y

    rates = torch.linspace(0, 0.3, 6).tolist()
    check(Stack([Dropped(rate) for rate in rates[1:]]), tmp_path)
    text = (tmp_path / "model.py").read_text()
    assert 'rates = torch.linspace(0, 0.3, 6, device="cpu").tolist()' in text
    assert "for p in rates[1:6])" in text
    assert "32**-0.5" in text
