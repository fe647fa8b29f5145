"""The arguments of a call by the names that the forward gives them, in the order it has them in."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from torch import nn

from ..errors import CaptureError
from ..text import a_or_an, shown
from . import tree
from .about import about, is_root
from .inputs import as_arguments
from .notes import ARGUMENT, PART
from .packing import places

if TYPE_CHECKING:
    from .frame import Frame


def named(module: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments by name; those of `**kwargs` have their own names, `*args` is one tuple."""
    signature = inspect.signature(module.forward)
    found: dict[str, Any] = {}
    for name, value in signature.bind(*args, **kwargs).arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            found.update(value)
        else:
            found[name] = value
    return found


def bind_arguments(frame: Frame, module: nn.Module, args: Any, kwargs: Any) -> None:
    """One placeholder for each tensor or number in the call, named as the forward names it."""
    caller = frame.recorder.caller
    for name, value in named(module, args, kwargs).items():
        found = list(tree.passed(caller, value))
        parts = [] if name == "args" else list(places(value))
        for i, leaf in enumerate(found):
            plain = "x" if name in ("args", "input", "inputs") else name
            node = frame.placeholder(plain if len(found) == 1 else f"{plain}_{i}", leaf)
            ARGUMENT.put(node, plain)
            if len(found) == len(parts) > 1:
                PART.put(node, parts[i])


def in_order(module: nn.Module, args: Any, kwargs: Any) -> Any:
    """The arguments in the order of the forward's parameters, however the call has them."""
    return (args, kwargs) if len(kwargs) < 2 else tuple(named(module, args, kwargs).values())


def separated(model: nn.Module, example: Any) -> tuple[Any, dict[str, Any]]:
    """What of an example is tensors, and what is constants that the model is captured for.

    Args:
        model: what is called with the example.
        example: a tensor, a tuple, or a dict of keywords.

    Returns:
        The example without constants, keywords in the order of the forward; the constants by name.

    Raises:
        CaptureError: VR601 if the model cannot be called so, or if an entry is neither.
    """
    known = dict(about(model).constants) if is_root(model) else {}
    args, kwargs = as_arguments(example)
    if not kwargs and all(tree.has_tensor(v) for v in args):
        by_name = known and isinstance(about(model).example, dict)
        return (named(model, args, kwargs) if by_name else example), known
    try:
        entries = named(model, args, kwargs)
    except TypeError as error:
        name = type(model).__name__
        raise CaptureError("VR601", f"{name} cannot be called like the example: {error}") from error
    constants = {k: v for k, v in entries.items() if not tree.has_tensor(v)}
    for name, value in constants.items():
        _check(name, value)
    tensors = {k: v for k, v in entries.items() if k not in constants}
    left = [v for v in args if tree.has_tensor(v)]
    if not kwargs and list(map(id, args[: len(left)])) == list(map(id, left)):
        return tuple(left), known | constants  # constants come last
    return tensors, known | constants


def _check(name: str, value: Any) -> None:
    """Refuses what source cannot hold as it is.

    Raises:
        CaptureError: VR601.
    """
    parts = value if isinstance(value, (tuple, list)) else (value,)
    if not all(v is None or type(v) in (bool, int, float, str) for v in parts):
        raise CaptureError(
            "VR601",
            f"the example's {shown(name)} is {a_or_an(type(value).__name__)}: it can have "
            "tensors and None, booleans, numbers, strings or tuples of these",
        )
