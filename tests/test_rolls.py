"""Loops with carried state: printed as loops, and computing what the straight program does."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn

import vitrewrite as vr
from tests.rolled import ALL, PARTS, ROLLED, STRAIGHT, Alternating


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return [t for item in items for t in tensors(item)]


@pytest.mark.parametrize("cls", ALL)
def test_the_same_values(cls: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = cls()
    captured = vr.capture(model, torch.zeros(2, 4))
    for training in (False, True):
        outputs = []
        for each in (model, captured):
            torch.manual_seed(1)
            outputs.append(tensors(each.train(training)(torch.ones(3, 4))))
        assert len(outputs[0]) == len(outputs[1])
        assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


@pytest.mark.parametrize("cls", ROLLED)
def test_printed_as_a_loop(cls: type[nn.Module]) -> None:
    text = inspect.getsource(type(vr.capture(cls(), torch.zeros(2, 4))).forward)
    assert text.count("in self.layers") + text.count("in enumerate(self.layers)") == 1
    assert "self.layers[" not in text
    for part in ROLLED[cls]:
        assert part in text


@pytest.mark.parametrize("cls", PARTS)
def test_a_part_is_printed_as_a_loop(cls: type[nn.Module]) -> None:
    text = inspect.getsource(type(vr.capture(cls(), torch.zeros(2, 4))).forward)
    assert text.count("    for ") == 1
    for part in PARTS[cls]:
        assert text.count(part) == 1


@pytest.mark.parametrize("cls", STRAIGHT)
def test_what_is_no_loop_stays_straight(cls: type[nn.Module]) -> None:
    text = inspect.getsource(type(vr.capture(cls(), torch.zeros(2, 4))).forward)
    assert "self.layers[4]" in text


@pytest.mark.parametrize("cls", ALL)
def test_printing_is_a_fixed_point(cls: type[nn.Module]) -> None:
    def forward(model: Any) -> str:
        return inspect.getsource(type(model).forward)

    first = vr.capture(cls(), torch.zeros(2, 4))
    again = vr.capture(first, torch.zeros(2, 4))
    assert forward(again) == forward(first)


def test_a_rewritten_turn_is_no_loop() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = Alternating(), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x))

    clause = 'insert lora(rank=1) at module("body.layers.2.first")\n'
    rewritten = vr.apply(clause, Head(), example=torch.zeros(2, 4))
    x = torch.randn(3, 4)
    rewritten.base.eval()
    rewritten.module.eval()
    assert torch.equal(rewritten.base(x), rewritten.module(x))
