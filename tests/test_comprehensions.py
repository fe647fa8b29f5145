"""Returned lists whose items are made alike: printed as comprehensions, with the same values."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn

import vitrewrite as vr
from tests.test_rolls import tensors


class Many(nn.Module):
    """Returns two tuples."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(5))

    def forward(self, x: torch.Tensor) -> Any:
        states, masks = [], []
        for layer in self.layers:
            x = layer(x)
            states.append(x.tanh())
            masks.append(x.sigmoid())
        return tuple(states), tuple(masks)


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.many, self.head, self.drop = Many(), nn.Linear(4, 3), nn.Dropout(0.5)
        self.scale = nn.Parameter(torch.ones(3))


class Zipped(Base):
    """All but the last of two tuples, together with values from outside."""

    def forward(self, x: torch.Tensor) -> Any:
        states, masks = self.many(x)
        shift = x.sum()
        made = [
            {"mask": m, "class": self.head(s) + shift}
            for s, m in zip(states[:-1], masks[:-1], strict=True)
        ]
        return {"class": self.head(states[-1]), "mask": masks[-1], "all": made}


class Whole(Base):
    """All items of one tuple, returned as a tuple that starts with something else."""

    def forward(self, x: torch.Tensor) -> Any:
        states, _ = self.many(x)
        return (x, *(self.head(state * 2) * self.scale for state in states))


class TakenNames(Base):
    """The names of the items are taken."""

    def forward(self, x: torch.Tensor) -> Any:
        states, masks = self.many(x)
        state, mask = x.exp(), x.sin()
        made = [self.head(s) * m[:, :3] + state[:, :3] for s, m in zip(states, masks, strict=True)]
        return state, mask, made, state - mask


class Uneven(Base):
    """One item is made in another way."""

    def forward(self, x: torch.Tensor) -> Any:
        states, _ = self.many(x)
        return [self.head(s if i != 2 else s.relu()) for i, s in enumerate(states)]


class Drawn(Base):
    """Random numbers are drawn for all items of one kind first."""

    def forward(self, x: torch.Tensor) -> Any:
        states, masks = self.many(x)
        dropped = [self.drop(s) for s in states]
        return [(d, self.drop(m)) for d, m in zip(dropped, masks, strict=True)]


class Reused(Base):
    """What is made for an item is needed elsewhere, too."""

    def forward(self, x: torch.Tensor) -> Any:
        states, _ = self.many(x)
        made = [self.head(s) for s in states]
        return made, made[1].sum()


class Twice(Base):
    """One list is returned two times."""

    def forward(self, x: torch.Tensor) -> Any:
        states, _ = self.many(x)
        made = [self.head(s) for s in states]
        return {"first": made, "second": made}


PRINTED = {
    Zipped: ["[:4]"], Whole: ["*["], TakenNames: ["in zip("], Twice: ["= [self.head("],
    Reused: ["made = [self.head(s) for s in many]", "made[1].sum()"],
}  # fmt: skip
STRAIGHT = (Uneven, Drawn)


def forward(model: Any) -> str:
    return inspect.getsource(type(model).forward)


@pytest.mark.parametrize("cls", [*PRINTED, *STRAIGHT])
def test_the_same_values_and_a_fixed_point(cls: type[nn.Module]) -> None:
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
    assert forward(vr.capture(captured, torch.zeros(2, 4))) == forward(captured)


@pytest.mark.parametrize("cls", PRINTED)
def test_printed_as_a_comprehension(cls: type[nn.Module]) -> None:
    text = forward(vr.capture(cls(), torch.zeros(2, 4)))
    assert text.count(" for ") == 1
    for part in PRINTED[cls]:
        assert part in text


@pytest.mark.parametrize("cls", STRAIGHT)
def test_what_is_not_alike_stays_straight(cls: type[nn.Module]) -> None:
    assert " for " not in forward(vr.capture(cls(), torch.zeros(2, 4)))
