"""A module made of printed text: what somebody who has only the emitted file would get."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..errors import EmitError
from ..text import first_line, listing
from ..tracing.construction import Uninitialised
from ..tracing.undisturbed import default_dtype, same_randomness

_FILE = "model.py"


def emitted_twin(text: str, state: Mapping[str, torch.Tensor]) -> nn.Module:
    """Executes the text of a `model.py`, builds its model, and gives that the tensors of a state.

    The tensors are taken as they are, so the twin shares them; what two names share stays shared.
    Nothing is drawn at random on the way. Buffers that no state dict holds are those that the text
    computes.

    Args:
        text: an emitted file; it is run in a namespace of its own.
        state: what `state_dict()` of the printed module gives, on one device.

    Returns:
        The model, in eval mode; its parameters are trained where the text says so.

    Raises:
        EmitError: VR806 if the text does not run, VR807 if its model has other tensors.
    """
    space: dict[str, Any] = {"__name__": "emitted"}
    with running(text), same_randomness(), Uninitialised():
        exec(compile(text, _FILE, "exec", dont_inherit=True), space)  # our own printed source
        with default_dtype(torch.float32), torch.device("cpu"):
            model: nn.Module = space["build"]()
    _compare(model, state)
    _give(model, state)
    return model.eval()


@contextmanager
def running(text: str) -> Iterator[None]:
    """Tells an error in the printed text as one, with its line.

    Raises:
        EmitError: VR806.
    """
    try:
        yield
    except (EmitError, KeyboardInterrupt):
        raise
    except Exception as error:  # whatever running a file can raise
        raise EmitError(
            "VR806",
            f"the source that was printed does not run: {first_line(error)}",
            notes=_place(error, text),
            suggestion="nothing was written; please report the model and the spec",
        ) from error


def _place(error: Exception, text: str) -> list[str]:
    """The line of the text at which it failed."""
    number = error.lineno if isinstance(error, SyntaxError) else None
    for frame in traceback.extract_tb(error.__traceback__):
        number = frame.lineno if frame.filename == _FILE else number
    lines = text.splitlines()
    if number is None or not 0 < number <= len(lines):
        return []
    before = [line for line in lines[:number] if line.startswith(("class ", "def "))]
    where = f" in {before[-1].rstrip(':')}" if before else ""
    return [f"line {number}{where}: {lines[number - 1].strip()}"]


def _compare(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    own = model.state_dict()
    found = (
        ("missing", sorted(state.keys() - own.keys())),
        ("unexpected", sorted(own.keys() - state.keys())),
        ("of another shape or dtype", sorted(k for k in own.keys() & state.keys()
                                             if _kind(own[k]) != _kind(state[k]))),
    )  # fmt: skip
    notes = [f"{what}: {listing(names, 4)}" for what, names in found if names]
    if notes:
        message = "the source that was printed makes a model with other tensors"
        raise EmitError("VR807", message, notes=notes)


def _kind(tensor: Any) -> Any:
    return (tuple(tensor.shape), tensor.dtype) if isinstance(tensor, torch.Tensor) else None


def _give(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Puts the tensors of a state in, under all names that one has; other buffers join them."""
    given: dict[int, torch.Tensor] = {}
    device = next((t.device for t in state.values()), torch.device("cpu"))
    for prefix, module in model.named_modules(remove_duplicate=False):
        for table, make in _TABLES.items():
            tensors = getattr(module, table)
            for name, old in tensors.items():
                if old is None:
                    continue
                if id(old) not in given:
                    new = state.get(f"{prefix}.{name}".lstrip("."))
                    given[id(old)] = old.to(device) if new is None else make(old, new)
                    given[id(given[id(old)])] = given[id(old)]
                tensors[name] = given[id(old)]


def _parameter(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    return nn.Parameter(new.detach(), requires_grad=old.requires_grad)


def _buffer(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    return new.detach()


_TABLES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "_parameters": _parameter,
    "_buffers": _buffer,
}
