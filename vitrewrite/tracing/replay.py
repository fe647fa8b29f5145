"""Operations of a trace run again on the CPU, on the sizes of the example or of a witness."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from . import tree
from .facts import Fact
from .numbers import Tracked, plain
from .operators import execute
from .witness import Witnesses

_MOST_ELEMENTS = 1 << 20

Variant = tuple[int, torch.dtype | None]
"""A witness (-1 is the example itself), and a dtype instead of those that were read off tensors."""


@dataclass(frozen=True)
class Read:
    """A dtype that the forward read off a tensor, which another precision changes."""

    dtype: torch.dtype


@dataclass(frozen=True)
class ReplayStep:
    """An operation on known values; without a target it says that a value is not known any more."""

    kind: str
    target: Any
    arguments: Any
    result: Any


class Replay:
    """The values of what was noted.

    Args:
        values: every value of the trace.
        facts: by the id of each tensor that is known.
        constants: gives what the model holds and no checkpoint changes, by id.
    """

    def __init__(
        self,
        values: Witnesses,
        facts: Mapping[int, Fact],
        constants: Callable[[], Mapping[int, torch.Tensor]],
    ) -> None:
        self.values = values
        self.steps: list[ReplayStep] = []
        self._facts = facts
        self._constants = constants
        self._runs: dict[Variant, tuple[int, dict[int, torch.Tensor]]] = {}

    def value(self, variant: Variant, tensor: torch.Tensor) -> torch.Tensor | None:
        """The value of a tensor as it is now, or None if it is not known."""
        done, found = self._runs.get(variant, (0, {}))
        for step in self.steps[done:]:
            self._run(step, variant, found)
        self._runs[variant] = len(self.steps), found
        known = found.get(id(tensor))
        return self._held(variant, tensor) if known is None else known

    def _held(self, variant: Variant, tensor: torch.Tensor) -> torch.Tensor | None:
        held = self._constants().get(id(tensor))
        if held is None or held.numel() > _MOST_ELEMENTS:
            return None
        value = held.detach().cpu()
        cast = variant[1] is not None and value.is_floating_point()
        return value.to(variant[1]).to(value.dtype) if cast else value.clone()

    def _run(self, step: ReplayStep, variant: Variant, found: dict[int, torch.Tensor]) -> None:
        if step.target is None:
            _forget(found, found.get(id(step.arguments[0][0])))
            return
        try:
            args, kwargs = self._given(step, variant, found)
            result = _execute(step, args, kwargs)
        except Exception:  # then it is not known; at run time the model may say why
            for value in tree.leaves(step.result):
                found.pop(id(value), None)
            return
        for old, new in zip(tree.leaves(step.result), tree.leaves(result), strict=False):
            found[id(old)] = new

    def _given(self, step: ReplayStep, variant: Variant, found: dict[int, torch.Tensor]) -> Any:
        """The arguments of a step, on the CPU.

        Raises:
            LookupError: if one is not known, or the result would be large.
        """
        for value in tree.leaves(step.result):
            self._shape(variant, value, _MOST_ELEMENTS)

        def one(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                known = found.get(id(value))
                known = self._held(variant, value) if known is None else known
                if known is None and id(value) in self._facts:
                    raise LookupError
                return self._shape(variant, value) if known is None else known
            if not isinstance(value, Tracked):
                return value
            number = plain(value) if variant[0] < 0 else value.witnesses[variant[0]]
            if number is None:
                raise LookupError
            return number

        args, kwargs = tree.map_leaves(one, step.arguments)
        args, kwargs = _on_cpu(args, variant[1]), _on_cpu(kwargs, variant[1])
        if step.kind == "function" and not tree.has_tensor((args, kwargs)):
            kwargs["device"] = "cpu"
        return args, kwargs

    def _shape(self, variant: Variant, value: Any, most: int | None = None) -> torch.Tensor:
        """Something of the shape of a value, whose elements nobody reads."""
        shape = self.values.all(value)[variant[0] + 1] if isinstance(value, torch.Tensor) else None
        if shape is None or (most is not None and shape.numel() > most):
            raise LookupError
        return torch.zeros((), dtype=shape.dtype).expand(shape.shape)


def _on_cpu(value: Any, dtype: torch.dtype | None) -> Any:
    if isinstance(value, Read):
        return dtype if dtype is not None and value.dtype.is_floating_point else value.dtype
    if isinstance(value, torch.device):
        return torch.device("cpu")
    if isinstance(value, str) and value.partition(":")[0] in ("cuda", "mps", "xpu", "meta"):
        return "cpu"
    if type(value) in (tuple, list):
        return type(value)(_on_cpu(v, dtype) for v in value)
    return {k: _on_cpu(v, dtype) for k, v in value.items()} if type(value) is dict else value


def _execute(step: ReplayStep, args: Any, kwargs: Any) -> Any:
    if step.kind == "same":
        return args[0]
    found = execute(step.kind, step.target, args, kwargs)
    return args[0] if step.target is operator.setitem else found


def _forget(found: dict[int, torch.Tensor], changed: torch.Tensor | None) -> None:
    """What shares memory with a tensor is not known any more."""
    if changed is not None:
        memory = changed.untyped_storage().data_ptr()
        for key in [k for k, v in found.items() if v.untyped_storage().data_ptr() == memory]:
            del found[key]
