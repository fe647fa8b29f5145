"""Values in a graph as JSON, both ways; what has no form of its own is refused."""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ..errors import UNPRINTABLE
from ..tracing.numbers import plain

# What paths may be made of: no text of a file may mean anything in the source that is printed.
_PATH = re.compile(r"[\w\- ]+(\.[\w\- ]+)*")
_DTYPES = {name: d for name in dir(torch) if isinstance(d := getattr(torch, name), torch.dtype)}
_DTYPES = {str(d).removeprefix("torch."): d for d in _DTYPES.values()}
_FORMATS = {
    str(f): f
    for f in (
        torch.contiguous_format, torch.channels_last, torch.preserve_format, torch.strided,
        torch.channels_last_3d,
    )
}  # fmt: skip


class ProgramError(Exception):
    """Something that a program as data cannot have."""


def identifier(text: object) -> str:
    """A name that can be written in source.

    Raises:
        DataError: if it is none.
    """
    if isinstance(text, str) and text.isidentifier() and not keyword.iskeyword(text):
        return text
    raise ProgramError(f"{text!r} is no name")


def path(text: object) -> str:
    """A module path, which may be empty.

    Raises:
        DataError: if it is none.
    """
    if isinstance(text, str) and (not text or _PATH.fullmatch(text)):
        return text
    raise ProgramError(f"{text!r} is no path")


def line(text: object) -> str:
    """A text that stays on one line.

    Raises:
        DataError: if it does not.
    """
    if isinstance(text, str) and not UNPRINTABLE.search(text) and not re.search(r"[\r\n\t]", text):
        return text
    raise ProgramError(f"{text!r} is no line of text")


def dtype(name: object) -> torch.dtype:
    """The dtype of a name such as `float32`.

    Raises:
        DataError: if there is none.
    """
    if isinstance(name, str) and name in _DTYPES:
        return _DTYPES[name]
    raise ProgramError(f"{name!r} is no dtype")


def encode(value: Any, number: dict[fx.Node, int] | None = None) -> Any:
    """A value as JSON.

    Args:
        value: nested tuples, lists, dicts and slices of constants, nodes, and tensors, of which
            shape, strides and dtype are kept.
        number: of each node.

    Raises:
        DataError: for anything else.
    """
    value = plain(value)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, str):
        return line(value)
    if isinstance(value, fx.Node):
        if number is None or value not in number:
            raise ProgramError(f"it reads '{value}', which is nowhere")
        return {"node": number[value]}
    if isinstance(value, (list, tuple, dict, set, frozenset, slice)):
        return _structure(value, number)
    return _constant(value)


def _structure(value: Any, number: dict[fx.Node, int] | None) -> Any:
    if isinstance(value, slice):
        return {"slice": [encode(v, number) for v in (value.start, value.stop, value.step)]}
    if isinstance(value, (set, frozenset)):
        return {"set": sorted(encode(v, number) for v in value)}
    if isinstance(value, dict):
        return {"dict": [[encode(k), encode(v, number)] for k, v in value.items()]}
    items = [encode(v, number) for v in value]
    if isinstance(value, torch.Size):
        return {"size": items}
    return {"tuple": items} if isinstance(value, tuple) else items


def _constant(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return {"tensor": [list(value.shape), list(value.stride()), encode(value.dtype)["dtype"]]}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if value is ...:
        return {"ellipsis": None}
    if isinstance(value, (torch.memory_format, torch.layout)):
        return {"format": str(value)}
    raise ProgramError(f"it holds a {type(value).__name__}")


def decode(value: Any, nodes: list[fx.Node]) -> Any:
    """The value that `encode` was given; tensors come back on meta.

    Raises:
        DataError: for what `encode` does not write.
    """
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return line(value)
    if isinstance(value, list):
        return [decode(v, nodes) for v in value]
    if not isinstance(value, dict) or len(value) != 1:
        raise ProgramError(f"{value!r} is no value")
    ((kind, inner),) = value.items()
    if kind not in _DECODERS:
        raise ProgramError(f"{kind!r} is no kind of value")
    return _DECODERS[kind](inner, nodes)


def _node(inner: Any, nodes: list[fx.Node]) -> fx.Node:
    if type(inner) is int and 0 <= inner < len(nodes):
        return nodes[inner]
    raise ProgramError(f"it reads the value {inner!r}, which is not there yet")


def _tensor(inner: Any, _: list[fx.Node]) -> torch.Tensor:
    shape, stride, kind = inner
    return torch.empty_strided(sizes(shape), sizes(stride), dtype=dtype(kind), device="meta")


def sizes(value: Any) -> tuple[int, ...]:
    """Lengths of a tensor.

    Raises:
        DataError: if they are none.
    """
    if isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 40 for v in value):
        return tuple(value)
    raise ProgramError(f"{value!r} is no shape")


def _table(inner: Any, nodes: list[fx.Node]) -> dict[Any, Any]:
    return {decode(k, nodes): decode(v, nodes) for k, v in inner}


_DECODERS: dict[str, Callable[[Any, list[fx.Node]], Any]] = {
    "node": _node,
    "tensor": _tensor,
    "dict": _table,
    "tuple": lambda inner, nodes: tuple(decode(v, nodes) for v in inner),
    "size": lambda inner, _: torch.Size(sizes(inner)),
    "set": lambda inner, nodes: frozenset(decode(v, nodes) for v in inner),
    "slice": lambda inner, nodes: slice(*(decode(v, nodes) for v in inner)),
    "float": lambda inner, _: float(inner),
    "dtype": lambda inner, _: dtype(inner),
    "device": lambda inner, _: torch.device(inner),
    "ellipsis": lambda *_: ...,
    "format": lambda inner, _: _FORMATS[inner],
}
