"""Python text for the nodes of a graph."""

from __future__ import annotations

import functools
import inspect
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from ..errors import EmitError
from ..text import shown
from ..tracing.modes import by_mode
from ..tracing.notes import CALLEE, VALUE
from ..tracing.sizes import by_size
from .literals import Symbol, constant

ATOM, CALL, POWER, UNARY, TERM, SUM, AND, XOR, OR, COMPARE, NOT, BOTH, EITHER, CHOICE = range(
    100, 30, -5
)

_BINARY: dict[Any, tuple[str, int]] = {
    operator.add: ("+", SUM), operator.sub: ("-", SUM), operator.mul: ("*", TERM),
    operator.truediv: ("/", TERM), operator.floordiv: ("//", TERM), operator.mod: ("%", TERM),
    operator.matmul: ("@", TERM), operator.pow: ("**", POWER), operator.and_: ("&", AND),
    operator.or_: ("|", OR), operator.xor: ("^", XOR), operator.eq: ("==", COMPARE),
    operator.ne: ("!=", COMPARE), operator.lt: ("<", COMPARE), operator.le: ("<=", COMPARE),
    operator.gt: (">", COMPARE), operator.ge: (">=", COMPARE), operator.is_not: ("is not", COMPARE),
}  # fmt: skip
_UNARY: dict[Any, tuple[str, int]] = {
    operator.neg: ("-", UNARY), operator.invert: ("~", UNARY), operator.not_: ("not ", NOT),
    operator.pos: ("+", UNARY),
}  # fmt: skip
INPLACE: dict[Any, tuple[str, str]] = {
    operator.iadd: ("+=", "add_"), operator.isub: ("-=", "sub_"), operator.imul: ("*=", "mul_"),
    operator.itruediv: ("/=", "div_"),
}  # fmt: skip
# Defaults that `inspect` cannot see, because the functions are built in.
_DEFAULTS: dict[Any, dict[str, Any]] = {
    F.scaled_dot_product_attention: {
        "attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False,
    },
    F.pad: {"mode": "constant", "value": None},
    F.gelu: {"approximate": "none"},
}  # fmt: skip


LEAST_HEAD = 16
"""A half times what has four channels, say of boxes, is no scale of attention."""


RANK = 4
"""Queries and keys are [batch, heads, tokens, channels]."""


@dataclass(frozen=True)
class Text:
    """An expression and how tightly it binds."""

    code: str
    binds: int = ATOM

    def within(self, binds: int) -> str:
        """The code, in parentheses where its surroundings bind tighter."""
        return self.code if self.binds >= binds else f"({self.code})"


def function_name(function: Callable[..., Any]) -> str:
    """How the function is called in a file that imports `torch`, `F` and `math`.

    Raises:
        EmitError: VR804 if it cannot be: it is part of another library.
    """
    name = getattr(function, "__name__", "")
    for space, prefix in ((F, "F"), (torch, "torch"), (math, "math")):
        if getattr(space, name, None) is function:
            return f"{prefix}.{name}"
    if function in (round, int, float, abs, min, max, getattr):
        return name
    for space in (torch.linalg, torch.fft, torch.special):
        plain = name.removeprefix("linalg_").removeprefix("fft_").removeprefix("special_")
        if getattr(space, plain, None) is function:
            return f"{space.__name__}.{plain}"
    module = inspect.getmodule(function)
    where = module.__name__ if module else ""
    if where.partition(".")[0] == "torch" and getattr(module, name, None) is function:
        return f"{where}.{name}"
    raise EmitError(
        "VR804",
        f"{shown(f'{where}.{name}'.strip('.'))} cannot be called in a file that imports torch only",
    )


def render(node: fx.Node, of: Callable[[Any], Text]) -> Text:
    """The expression for a node, given the expressions for its operands."""
    if node.op == "get_attr":
        return Text(CALLEE.of(node))
    if node.op == "call_module":
        return Text(f"{CALLEE.of(node)}({_arguments(node, of)})", CALL)
    if node.op == "call_method":
        owner = of(node.args[0]).within(CALL)
        return Text(f"{owner}.{node.target}({_arguments(node, of, skip=1)})", CALL)
    return _function(node, of)


def _function(node: fx.Node, of: Callable[[Any], Text]) -> Text:
    target, args = node.target, node.args
    if target in _BINARY:
        symbol, binds = _BINARY[target]
        scale = _scale(node) if target is operator.mul else None
        left, right = of(args[0]).within(binds), (scale or of(args[1])).within(binds + 1)
        if target is operator.pow:
            left, right = of(args[0]).within(CALL), of(args[1]).within(UNARY)
        return Text(f"{left} {symbol} {right}", binds)
    if target in _UNARY:
        symbol, binds = _UNARY[target]
        return Text(f"{symbol}{of(args[0]).within(binds)}", binds)
    if target is operator.getitem:
        return Text(f"{of(args[0]).within(CALL)}[{subscript(args[1], of)}]", CALL)
    if target is getattr:
        return Text(f"{of(args[0]).within(CALL)}.{args[1]}", CALL)
    if target in INPLACE:
        return Text(f"{of(args[0]).within(CALL)}.{INPLACE[target][1]}({of(args[1]).code})", CALL)
    if target is by_mode:
        if args[1:] == (True, False):
            return of(args[0])
        training, yes, no = (of(a).within(CHOICE + 1) for a in args)
        return Text(f"{yes} if {training} else {no}", CHOICE)
    if target is by_size:
        return _choice(args[0], args[1], args[2], of)
    assert callable(target)
    return Text(f"{function_name(target)}({_arguments(node, of)})", CALL)


def _choice(condition: Any, yes: Any, no: Any, of: Callable[[Any], Text]) -> Text:
    """`yes if condition else no`, and what it is short for."""
    if yes is True:
        return Text(f"{of(condition).within(EITHER)} or {of(no).within(EITHER)}", EITHER)
    if no is False:
        return Text(f"{of(condition).within(BOTH)} and {of(yes).within(BOTH)}", BOTH)
    if (yes, no) == (False, True):
        return Text(f"not {of(condition).within(NOT)}", NOT)
    first, second = of(yes).within(CHOICE + 1), of(no).within(CHOICE + 1)
    return Text(f"{first} if {of(condition).within(CHOICE + 1)} else {second}", CHOICE)


def subscript(index: Any, of: Callable[[Any], Text]) -> str:
    """The inside of `[...]`."""
    if isinstance(index, tuple):
        parts = [of(i).code if isinstance(i, tuple) else subscript(i, of) for i in index]
        return ", ".join(parts) + ("," if len(index) == 1 else "")
    if isinstance(index, slice):
        start, stop, step = ("" if v is None else of(v).code for v in _parts(from_start(index)))
        return f"{start}:{stop}" + (f":{step}" if step else "")
    return of(index).code


def from_start(index: slice) -> slice:
    """A slice that begins where a tensor does, without the number that says so."""
    begins = type(index.start) is int and index.start == 0
    forward = index.step is None or (type(index.step) is int and index.step > 0)
    return slice(None, index.stop, index.step) if begins and forward else index


def _parts(index: slice) -> tuple[Any, Any, Any]:
    return index.start, index.stop, index.step


def _arguments(node: fx.Node, of: Callable[[Any], Text], skip: int = 0) -> str:
    given = [of(a).code for a in node.args[skip:]]
    return ", ".join(given + [f"{k}={of(v).code}" for k, v in named_arguments(node).items()])


def named_arguments(node: fx.Node) -> dict[str, Any]:
    """The keyword arguments of a call that are not its defaults."""
    return named(node.target, node.kwargs)


def named(target: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the keyword arguments of a function that are not its defaults."""
    defaults = defaults_of(target)
    return {k: v for k, v in kwargs.items() if not _is(v, defaults.get(k, ...))}


def _is(value: Any, default: Any) -> bool:
    return type(value) is type(default) and bool(value == default)


@functools.lru_cache(maxsize=512)
def defaults_of(target: Any) -> Mapping[str, Any]:
    """The defaults of the arguments of a function, as far as they can be told."""
    if target in _DEFAULTS:
        return _DEFAULTS[target]
    if isinstance(target, str) or not callable(target):
        return {}
    try:
        parameters = inspect.signature(target).parameters.values()
    except (ValueError, TypeError):
        return {}
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def structure(value: Any, of: Callable[[fx.Node], Text]) -> Text:
    """Text for an argument: a node, a constant, or a container of them."""
    if isinstance(value, fx.Node):
        return of(value)
    if isinstance(value, list):
        inner = ", ".join(structure(v, of).code for v in value)
        return Text(inner[1:] if len(value) == 1 and inner.startswith("*") else f"[{inner}]")
    if isinstance(value, tuple):
        inner = ", ".join(structure(v, of).code for v in value)
        if len(value) == 1 and inner.startswith("*"):
            return Text(f"tuple({inner[1:]})", CALL)
        return Text(f"({inner}{',' if len(value) == 1 else ''})")
    if isinstance(value, dict):
        inner = ", ".join(f"{constant(k)}: {structure(v, of).code}" for k, v in value.items())
        return Text(f"{{{inner}}}")
    if isinstance(value, slice):
        return Text(f"slice({', '.join(structure(v, of).code for v in _parts(value))})", CALL)
    if isinstance(value, Symbol):
        return Text(value.text, _binds(value.text))
    if root := _root(value):
        return Text(root, POWER)
    code = constant(value)
    return Text(code, UNARY if code.startswith("-") else ATOM)


def _root(value: Any) -> str:
    """`64**-0.5`, the scale of attention, where that is exactly the value and shorter."""
    if type(value) is not float or len(repr(value)) < 12 or not 0.01 < value < 1:
        return ""
    number = round(value**-2)
    return f"{number}**-0.5" if number**-0.5 == value else ""


def _scale(node: fx.Node) -> Text | None:
    """`64**-0.5` for 0.125 behind queries or keys of 64 channels, as attention is written."""
    tensor, value = node.args
    width = _width(tensor) if type(value) is float else 0
    whole = width >= LEAST_HEAD and width**-0.5 == value
    return Text(f"{width}**-0.5", POWER) if whole else None


def _width(tensor: Any) -> int:
    """The channels of queries or keys, or of some of their rows; 0 for anything else."""
    if not isinstance(tensor, fx.Node):
        return 0
    value, index = VALUE.get(tensor), tensor.args[1:2]
    if isinstance(value, torch.Tensor):
        return int(value.shape[-1]) if value.dim() == RANK else 0
    rows = index and isinstance(index[0], tuple) and len(index[0]) < RANK
    of_rows = rows and all(isinstance(part, slice) for part in index[0])  # type: ignore[union-attr]
    return _width(tensor.args[0]) if of_rows and tensor.target is operator.getitem else 0


def _binds(symbol: str) -> int:
    """How tightly `1 - self.rate`, `2 * self.dim` or `self.dim // 2` binds; a name is whole."""
    if symbol.startswith("1 - "):
        return SUM
    return TERM if re.match(r"\d+ \* |[\w.]+ // \d+$", symbol) else ATOM
