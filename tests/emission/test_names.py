"""Whatever its parts are called, a model is emitted, loads, and keeps its keys."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn

import vitrewrite as vr
from vitrewrite.emission.grouping import is_nested, unpacked
from vitrewrite.tracing.notes import ARITY

from .emitted import INPUT, Block, check, class_named, linear, module


def in_turn(layers: Any, x: torch.Tensor) -> torch.Tensor:
    for layer in layers:
        x = layer(x)
    return x


def keys_of_a_dict() -> nn.Module:
    keys = ["3x3", "a-b", "class", "a b", "lambda", "a\nb", "q'\"\\", "\u2028", "\x00"]
    kept = nn.ModuleDict({key: linear() for key in keys})
    return module(lambda s, x: sum(s.d[key](x) for key in keys), d=kept)


def numbers_in_another_order() -> nn.Module:
    kept = nn.ModuleDict({"1": linear(), "0": nn.LayerNorm(8)})
    return module(lambda s, x: s.d["1"](s.d["0"](x)), d=kept)


def a_dict_with_numbers_in_order() -> nn.Module:
    kept = nn.ModuleDict({str(i): Block() for i in range(4)})
    return module(lambda s, x: in_turn(s.d.values(), x), d=kept)


def a_numbered_module_that_is_no_list() -> nn.Module:
    class Box(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for i in range(4):
                self.add_module(str(i), Block())

    return module(lambda s, x: in_turn(s.box._modules.values(), x), box=Box())


def children_of_a_named_sequential_called_one_by_one() -> nn.Module:
    kept = nn.Sequential(OrderedDict(fc=linear(), norm=nn.LayerNorm(8)))
    return module(lambda s, x: s.q.norm(s.q.fc(x)), q=kept)


def a_sequential_with_numbers_in_another_order() -> nn.Module:
    kept = nn.Sequential(OrderedDict([("1", linear()), ("0", nn.LayerNorm(8))]))
    return module(lambda s, x: s.q[1](s.q[0](x)), q=kept)


def lists_of_parameters() -> nn.Module:
    rows = nn.ParameterList([nn.Parameter(torch.randn(8)) for _ in range(2)])
    named = nn.ParameterDict({"a-b": nn.Parameter(torch.randn(8))})
    return module(lambda s, x: x * s.p[0] + s.p[1] + s.d["a-b"], p=rows, d=named)


def private_names() -> nn.Module:
    class Private(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.__layer = linear()
            self.__scale = nn.Parameter(torch.randn(8))
            self.add_module("__class__x", linear())
            self.register_buffer("__y", torch.randn(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = getattr(self, "__class__x")(self.__layer(x))
            return x * self.__scale + self._buffers["__y"]

    return Private()


def words_of_the_language() -> nn.Module:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        y = self.F(self.torch(self.nn(self.self(self.x(x)))))
        return torch.sin(y) * getattr(self, "lambda") + getattr(self, "None")

    children = {name: linear() for name in ("F", "torch", "nn", "self", "x")}
    tensors = {name: nn.Parameter(torch.randn(8)) for name in ("lambda", "None")}
    return module(forward, **children, **tensors)


def arguments_called_as_what_is_used() -> nn.Module:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = linear()

        def forward(self, float: Any, getattr: Any, min: Any, int: Any) -> Any:
            return self.fc(float).masked_fill(getattr > 9, -torch.inf) + min + int.abs()

    return module(lambda s, x: s.c(x, x, x + 1, x), c=Odd())


def settings_called_as_anything() -> nn.Module:
    class Odd(nn.Module):
        def __init__(self, k: float, width: int) -> None:
            super().__init__()
            names = ("a b", "class", "3x", 'q"', "nn", "torch", "Odd", "__z", "self", "p", "kind")
            self.__dict__.update(dict.fromkeys(names, k))
            self.factor, self.size = nn.Linear(8, width), nn.Linear(width, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.size(self.factor(x))
            return x * self.__dict__["a b"] + self.__dict__["kind"] / 3 + len(self._modules) * x

    return module(lambda s, x: s.b(s.a(x)), a=Odd(2.5, 16), b=Odd(3.5, 24))


def an_argument_named_as_the_variable_of_a_comprehension() -> nn.Module:
    class Odd(nn.Module):
        def __init__(self, p: float) -> None:
            super().__init__()
            self.drops = nn.ModuleList([nn.Dropout(q) for q in (p, 0.1, 0.2, 0.3)])
            self.fc = linear()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(in_turn(self.drops, x))

    return module(lambda s, x: s.b(s.a(x)), a=Odd(0.3), b=Odd(0.4))


MODELS: list[Callable[[], nn.Module]] = [
    keys_of_a_dict, numbers_in_another_order, a_dict_with_numbers_in_order,
    a_numbered_module_that_is_no_list, children_of_a_named_sequential_called_one_by_one,
    a_sequential_with_numbers_in_another_order, lists_of_parameters, private_names,
    words_of_the_language, arguments_called_as_what_is_used, settings_called_as_anything,
    an_argument_named_as_the_variable_of_a_comprehension,
]  # fmt: skip


@pytest.mark.parametrize("build", MODELS, ids=lambda f: f.__name__)
def test_names_of_parts(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    check(build(), tmp_path / "out")


CLASSES = [
    "F", "nn", "torch", "math", "super", "print", "build", "load", "unpack", "None", "class",
    "\ufb01x", "\u00e9", "3D", "a-b", "<lambda>", "Sequential", "Module", "_", "p", "__Private",
    "OrderedDict", "TRAINABLE", 'x"); import os; ("\n#', "ValueError", "getattr",
]  # fmt: skip


@pytest.mark.parametrize("name", CLASSES, ids=ascii)
def test_names_of_classes(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    cls = class_named(name)
    check(module(lambda s, x: s.b(s.a(x)), a=cls(), b=cls()), tmp_path / "inside")
    check(cls(), tmp_path / "root")


HIDDEN = ["forward", "type", "kind", "template", "settings", "config", "example", "flat", "half"]


@pytest.mark.parametrize("name", HIDDEN)
def test_parts_called_as_what_every_module_has(name: str, tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self, k: float) -> None:
            super().__init__()
            self._modules[name] = linear()
            self.k = k

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self._modules[name](x) * self.k  # type: ignore[misc]

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._parameters[name] = nn.Parameter(torch.randn(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self._parameters[name]  # type: ignore[operator]

    parts = {"a": Odd(2.5), "b": Odd(3.5), "c": Scaled()}
    check(module(lambda s, x: s.c(s.b(s.a(x))), **parts), tmp_path / "out")


@pytest.mark.parametrize("name", ["a.b", "", "\ud800"], ids=ascii)
def test_a_name_that_no_state_dict_can_hold_is_refused(name: str) -> None:
    model = module(lambda s, x: s._modules[name](x), **{name: linear()})
    with pytest.raises(vr.VitrewriteError, match="VR606 Made has a part named"):
        vr.capture(model, INPUT)


class Renamed(nn.Module):
    """Values with more than one name, and one that is changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = linear()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = x.shape[1]
        again = length
        shown = x.sin()
        other = shown
        hidden = self.fc(other)
        changed = hidden.mul_(length * again)
        return torch.cat([changed, shown], 1).reshape(-1, 2 * length, 8)


def test_a_value_keeps_the_first_name_of_its_source() -> None:
    captured = vr.capture(Renamed().eval(), INPUT)
    names = [str(n.meta.get("hint")) for g in captured.graphs.values() for n in g.nodes]
    assert {"length", "shown", "hidden", "changed"} <= set(names)
    assert not {"again", "other"} & set(names)
    wanted = Renamed()
    wanted.load_state_dict(captured.state_dict())
    with torch.no_grad():
        assert torch.equal(captured(INPUT), wanted(INPUT))


def test_an_item_of_which_a_slice_is_read_is_a_name() -> None:
    graph = fx.Graph()
    call = graph.call_module("part", (graph.placeholder("x"),))
    first, second = (graph.call_function(operator.getitem, (call, i)) for i in range(2))
    for node in (call, first, second):
        ARITY.put(node, 2)
    graph.call_function(operator.getitem, (first, 0))
    rest = graph.call_function(operator.getitem, (second, slice(1, None)))
    graph.output((first, rest))
    assert second in unpacked(graph)[call]
    assert [is_nested(second), second in unpacked(graph)] == [False, False]
