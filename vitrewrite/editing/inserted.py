"""Runs modules that passes put in on meta, and checks that they do what they say."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from ..tracing.leaves import changed_by


class MisfitError(Exception):
    """An inserted module does something that it may not.

    Attributes:
        code: of the error that is told.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def run_inserted(module: nn.Module, args: tuple[Any, ...]) -> Any:
    """What an inserted module yields.

    Raises:
        MisfitError: VR424, VR426 or VR427 for outputs or inputs that are not as they should be.
    """
    before = [_version(a) for a in args]
    outputs = module.forward(*args)
    names = list(inspect.signature(module.forward).parameters)
    for name, value, version in zip(names, args, before, strict=False):
        if _version(value) != version:
            raise MisfitError("VR427", f"writes into its argument '{name}', which others may hold")
    results = outputs if isinstance(outputs, tuple) else (outputs,)
    changes = changed_by(module)
    if len(changes) > len(results) or any(i is not None and i >= len(args) for i in changes):
        raise MisfitError(
            "VR424",
            f"has changes = {changes}, and yields {len(results)} from {len(args)} arguments",
        )
    for result, index in zip(results, changes, strict=False):
        if index is not None and (odd := _unlike(result, args[index], whole=changes == (1,))):
            raise MisfitError("VR426", f"yields {odd} for '{names[index]}'")
    return outputs


def _version(value: Any) -> int:
    return value._version if isinstance(value, torch.Tensor) else 0


def _unlike(result: Any, given: Any, *, whole: bool) -> str:
    """How an output differs from what it is a changed form of, in words.

    Another number of tokens is no difference, except of a branch beside a layer (`whole`).
    """
    if not (isinstance(result, torch.Tensor) and isinstance(given, torch.Tensor)):
        return "" if type(result) is type(given) else f"a {type(result).__name__}"
    if result.dtype != given.dtype:
        return f"{result.dtype} instead of {given.dtype}"
    # A bias of scores has the tokens on two axes.
    other = {(a, b) for a, b in zip(result.shape, given.shape, strict=False) if a != b}
    if result.dim() != given.dim() or len(other) > (not whole):
        return f"{_shape(result)} instead of {_shape(given)}"
    return ""


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"
