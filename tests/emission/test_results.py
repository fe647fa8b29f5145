"""Results of calls: names that cross calls, lists of them, and inputs that two classes share."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.utils.generic import ModelOutput

import vitrewrite as vr
from vitrewrite.tracing.unit import Unit

X = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))


def captured(model: nn.Module) -> Any:
    """The model, captured: the same numbers, and the same source when captured once more."""
    model = model.eval()
    found = vr.capture(model, X)
    with torch.no_grad():
        for x in (X, torch.randn(3, 5, 4)):
            assert torch.equal(model(x), found(x))
    again = vr.capture(found, X)
    assert type(again).printed.text == type(found).printed.text  # type: ignore[attr-defined]
    return found


def of(module: nn.Module) -> str:
    return inspect.getsource(type(module).forward)


@dataclass
class Found(ModelOutput):
    """What a neck returns."""

    summary: Any = None
    details: Any = None


class Fields(nn.Module):
    """Returns a dataclass."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.a(x).tanh() * x
        return Found(summary=x.mean(1, keepdim=True), details=self.b(x) * x.exp())


class ReadsFields(nn.Module):
    """Reads fields where they are used."""

    def __init__(self) -> None:
        super().__init__()
        self.neck, self.head = Fields(), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> Any:
        found = self.neck(x)
        return self.head(found.summary + found.details) * found.details


def test_results_are_called_as_the_fields_that_the_source_reads() -> None:
    text = of(captured(ReadsFields()))
    assert "summary, details = self.neck(x)" in text


class Pair(nn.Module):
    """Returns two values that have names inside."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> Any:
        scores = self.a(x).tanh() * x
        rest = self.b(scores) * scores.exp()
        return rest * 2 + scores, scores


class Nameless(nn.Module):
    """Gives what it reads no name."""

    def __init__(self) -> None:
        super().__init__()
        self.pair, self.head = Pair(), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> Any:
        found = self.pair(x)
        return self.head(found[0] * found[1]) + found[1]


def test_results_are_called_as_where_they_are_made() -> None:
    assert "scores = self.pair(x)" in of(captured(Nameless()))


class Maps(nn.Module):
    """Returns a value, then three."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.layer(x).tanh() * x
        return x * x.exp(), x.sin() * x, x.cos() + x, x.tan() * 2


class Sums(nn.Module):
    """Takes a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, maps: Any) -> Any:
        return self.layer(maps[0] * maps[1]) + maps[2] * maps[0]


class HandsOn(nn.Module):
    """Hands on a list of all results but the first."""

    def __init__(self) -> None:
        super().__init__()
        self.maps, self.sums, self.head = Maps(), Sums(), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> Any:
        first, *rest = self.maps(x)
        return self.head(first * self.sums(rest)) + first


def test_results_that_are_handed_on_as_a_list_are_one() -> None:
    text = of(captured(HandsOn()))
    assert "first, *rest = self.maps(x)" in text
    assert "self.sums(rest)" in text


class Alone(HandsOn):
    """Reads one of them alone, too."""

    def forward(self, x: torch.Tensor) -> Any:
        first, *rest = self.maps(x)
        return self.head(first * self.sums(rest)) + rest[1]


def test_results_that_are_read_alone_have_names_of_their_own() -> None:
    assert "*" not in of(captured(Alone())).partition(" = self.maps")[0].rpartition("\n")[2]


class Cross(nn.Module):
    """Adds positions to x twice, and blocks some where there is a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.score = Score()

    def forward(self, x: torch.Tensor, mask: Any, first: Any, second: Any) -> Any:
        x = x + self.score(self.a(x + first), mask)
        return self.b((x + second).tanh()) * x


class Score(nn.Module):
    """Blocks some values."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor, mask: Any) -> Any:
        x = x.exp() * self.scale
        return x.softmax(-1) if mask is None else (x + mask).softmax(-1)


class Layers(nn.Module):
    """Of two layers, one has equal positions and a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Cross() for _ in range(2))

    def forward(self, x: torch.Tensor) -> Any:
        first, second = x.sin(), x.cos()
        x = self.layers[0](x * 2, None, first, second)
        return self.layers[1](x, first * second, second, second)


def test_layers_that_read_one_value_for_two_are_of_the_class_of_the_others() -> None:
    model = captured(Layers())
    assert type(model.layers[0]) is type(model.layers[1])
    assert isinstance(model.layers[0], Unit)
    text = type(model).printed.text
    assert "def forward(self, x, first, second, mask=None):" in text
    assert "(self.layers[0](x * 2, first, second), second, second, first * second)" in text


class Turned(Layers):
    """The same, the other way round."""

    def forward(self, x: torch.Tensor) -> Any:
        first, second = x.sin(), x.cos()
        x = self.layers[0](x * 2, first * second, second, second)
        return self.layers[1](x, None, first, second)


def test_the_order_of_the_layers_makes_no_difference() -> None:
    model = captured(Turned())
    assert type(model.layers[0]) is type(model.layers[1])
