"""What a forward learns that asks for the value of a tensor."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from .known import Answer
from .numbers import make

if TYPE_CHECKING:
    from .frame import Frame


def truth(frame: Frame, tensor: torch.Tensor) -> bool | None:
    """`bool(tensor)`, or None if it is not known."""
    answer = frame.recorder.known.answer(frame, tensor)
    return None if answer is None else bool(_number(frame, tensor, answer, bool))


def read(frame: Frame, name: str, tensor: torch.Tensor, rest: tuple[Any, ...]) -> Any:
    """What a method that reads values returns, or `NotImplemented` if they are not known."""
    if name == "__contains__":
        with frame.recorder:
            found = truth(frame, (tensor == rest[0]).any())
        return NotImplemented if found is None else found
    if name not in ("item", "tolist", "__int__", "__float__", "__index__"):
        return NotImplemented
    answer = frame.recorder.known.answer(frame, tensor)
    if answer is None:
        return NotImplemented
    if name == "tolist" and tensor.dim():
        return _listed(frame, tensor)
    number = _number(frame, tensor, answer)
    casts: dict[str, Callable[[Any], Any]] = {"__int__": int, "__float__": float, "__index__": int}
    return casts.get(name, lambda n: n)(number)


def _number(frame: Frame, tensor: torch.Tensor, answer: Answer, kind: Any = None) -> Any:
    """The one element of a tensor: a constant, or a number that follows the sizes."""
    kind = kind or (lambda v: v)
    with frame.recorder.off():
        value = kind(answer.value.item())
        others = tuple(None if w is None else kind(w.item()) for w in answer.witnesses)
    if answer.fact.certain:
        return value
    node = frame.arg(tensor)
    number: Any = make(
        frame,
        value + 0,
        tuple(None if w is None else w + 0 for w in others),
        lambda: frame.graph.call_method("item", (node,)),
    )
    number.deps = answer.fact.deps
    if not isinstance(value, bool):
        return number
    number._guard(operator.ne if value else operator.eq, 0)
    return value


def _listed(frame: Frame, tensor: torch.Tensor) -> list[Any]:
    """`tensor.tolist()`, element by element."""
    with frame.recorder:
        parts = [tensor[i] for i in range(int(tensor.shape[0]))]
        return [part.tolist() for part in parts]
