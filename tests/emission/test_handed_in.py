"""Children that a parent hands in, and numbers that follow each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import vitrewrite as vr
from vitrewrite.emission.literals import constant


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ((0, *range(3, 33)), "(0, *range(3, 33))"),
        (tuple(range(9)), "(*range(0, 9),)"),
        ([*range(-3, 6), 7, 8], "[*range(-3, 6), 7, 8]"),
        ((1, 2, 3, 4), "(1, 2, 3, 4)"),
        ((False, True, 2, 3, 4, 5, 6, 7, 8), "(False, True, 2, 3, 4, 5, 6, 7, 8)"),
        ([0.0, 1.0, *range(2, 9)], "[0.0, 1.0, 2, 3, 4, 5, 6, 7, 8]"),
    ],
)
def test_numbers_that_follow_each_other_are_a_range(value: Any, text: str) -> None:
    assert constant(value) == text
    assert repr(eval(text)) == repr(value)


class Half(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 0.5


class Third(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - 3


class Layer(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.act = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.act(self.fc(x))


class Side(nn.Module):
    def __init__(self, kinds: tuple[type[nn.Module], ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(kind()) for kind in kinds])
        self.end = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.end(x)


class Sides(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.a = Side((Half, Third) * (count // 2))
        self.b = Side((Third, Half) * (count // 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x) + self.b(x)


def source(module: Any) -> str:
    return str(type(module).printed.text)


@pytest.mark.parametrize("count", [2, 4])
def test_children_of_one_list_are_handed_in_as_a_list(count: int) -> None:
    torch.manual_seed(0)
    model = Sides(count).eval()
    x = torch.randn(2, 4)
    found = vr.capture(model, x)
    text = source(found)
    assert ("def __init__(self, acts):" in text) == (count == 4)
    assert ("(Layer(p) for p in acts)" in text) == (count == 4)
    with torch.no_grad():
        assert torch.equal(found(x), model(x))
    assert list(found.state_dict()) == list(model.state_dict())
    space: dict[str, Any] = {"nn": nn}
    exec(text, space)
    made = space["Sides"]().eval()
    made.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(made(x), model(x))
    assert source(vr.capture(found, x)) == text
