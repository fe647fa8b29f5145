"""Everything public that can be reached from a result, with what a prompt shows of it."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

_PLAIN = (str, bytes, int, float, complex, type, types.ModuleType, torch.dtype, torch.device)
_TORCH = (torch.Tensor, fx.Node, fx.Graph)
_METHODS = ("flat", "delta")  # what takes no argument and yields something else


def _is_ours(value: object) -> bool:
    return type(value).__module__.split(".")[0] in ("vitrewrite", "passes")


def _names(value: object) -> list[str]:
    if not isinstance(value, nn.Module):
        return [name for name in dir(value) if not name.startswith("_")]
    torchs = {*dir(nn.Module), *dir(fx.GraphModule)}
    return [n for n in (*dir(type(value)), *vars(value)) if not n.startswith("_") | (n in torchs)]


def _attributes(value: object) -> Iterator[tuple[str, Any]]:
    for name in _names(value):
        try:
            found = getattr(value, name)
        except Exception:
            continue  # what is not there for this model is an error that says so
        if name in _METHODS and hasattr(value, "_repr_html_"):
            yield f".{name}()", found()
        elif not isinstance(found, types.MethodType | types.FunctionType):
            yield f".{name}", found


def _inner(value: object) -> Iterator[tuple[str, Any]]:
    if _is_ours(value):
        yield from _attributes(value)
    if isinstance(value, Mapping):
        yield from ((f"[{str(key)[:30]}]", each) for key, each in list(value.items()))
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"[{number}]", each) for number, each in enumerate(value))


def reached(value: object, path: str, steps: int) -> Iterator[tuple[str, object]]:
    """Objects of ours, with the way to each: through attributes, mappings, lists and tuples.

    Args:
        value: where to start.
        path: the way to it.
        steps: how far to go.
    """
    known: dict[int, object] = {}  # they are kept, so that no identity is used twice
    near: list[tuple[str, Any]] = [(path, value)]
    for _ in range(steps):
        far: list[tuple[str, Any]] = []
        for where, each in near:
            if each is None or isinstance(each, (*_PLAIN, *_TORCH)) or id(each) in known:
                continue
            known[id(each)] = each
            if _is_ours(each):
                yield where, each
            far += [(f"{where}{name}", inner) for name, inner in _inner(each)]
        near = far


def sizes(value: object, path: str, steps: int = 6) -> dict[str, int]:
    """How long what is shown of everything in reach is, by the way to it."""
    return {where: len(repr(each)) for where, each in reached(value, path, steps)}
