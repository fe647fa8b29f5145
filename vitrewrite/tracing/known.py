"""Values that are known while tracing: what factories make of numbers, and what follows from it.

`mask = torch.ones(h, w)` says nothing of the image. Where a forward asks for the value of such a
tensor, the operations that lead to it are run again on the CPU, with the sizes of the example and
with those of each witness. Nothing is computed before somebody asks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import CaptureError
from . import tree, walk
from .construction import tables
from .facts import Fact, Memory
from .numbers import Deps, Tracked
from .operators import RANDOM, is_inplace
from .replay import Read, Replay, ReplayStep
from .uniform import FRESH, stays_uniform
from .witness import Witnesses

if TYPE_CHECKING:
    from .frame import Frame

_MOST_STEPS = 4000
_LIKE = {
    "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "new_tensor",
}  # fmt: skip
_AS_OTHER = {"type_as", "expand_as", "view_as", "reshape_as", "to"}
# What was in memory is nobody's value: who reads it before it is written may as well get zeros.
_UNSET: dict[Any, Any] = {
    torch.empty: torch.zeros, torch.empty_like: torch.zeros_like, "new_empty": "new_zeros",
}  # fmt: skip
_DTYPES = (torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Answer:
    """The value of a tensor under the example and under each witness, None where that is dead."""

    value: torch.Tensor
    witnesses: tuple[torch.Tensor | None, ...]
    fact: Fact


class Known:
    """The operations on known values of one trace, and what comes of them.

    Args:
        model: what is traced; its tables that no checkpoint holds are known.
        values: every value of the trace.
        other: what is known in another trace of it, which looked the tables up.
    """

    def __init__(self, model: nn.Module, values: Witnesses, other: Known | None = None) -> None:
        self.model = model
        self.values = values
        self._facts: dict[int, Fact] = {}
        self._memories: dict[int, Memory] = {}
        self._tables: dict[int, torch.Tensor] | None = other._tables if other else None
        self._asked_tables = False
        self.replay = Replay(values, self._facts, self._constants)

    # -- while tracing ----------------------------------------------------------------------------

    def note(self, frame: Frame, kind: str, target: Any, arguments: Any, result: Any) -> None:
        """Takes note of an operation that was recorded in `frame`."""
        target = _UNSET.get(target, target)
        name = target if isinstance(target, str) else getattr(target, "__name__", "")
        tensors = [v for v in tree.leaves(arguments) if isinstance(v, torch.Tensor)]
        if is_inplace(target) and tensors:
            self._changed(kind, target, arguments, tensors, result, name)
            return
        shapes = tensors if name in _LIKE else tensors[1:] if name in _AS_OTHER else []
        facts: list[Fact] = []
        for tensor in tensors:
            if not (shapes and any(tensor is s for s in shapes)):
                fact = self._fact(tensor)
                if fact is None:
                    return
                facts.append(fact)
        if name.removesuffix("_") in RANDOM or name == "empty_strided":
            return
        if len(self.replay.steps) >= _MOST_STEPS or not tree.has_tensor(result):
            return
        numbers = [v for v in tree.leaves(arguments) if isinstance(v, Tracked)]
        deps = frozenset().union(
            *(f.deps for f in facts if f),
            *(n.deps for n in numbers),
            *map(self._shape_deps, shapes),
        )
        oldest = min([len(self.replay.steps), *(f.oldest for f in facts if f)])
        same = stays_uniform(name, arguments, [bool(f and f.uniform) for f in facts])
        self._add(
            ReplayStep(kind, target, _marked(frame, arguments), result), Fact(deps, oldest, same)
        )
        if name not in FRESH:
            for value in (*tensors[1:], *tree.leaves(result)):
                if tensors and isinstance(value, torch.Tensor):
                    self._memory(value).join(self._memory(tensors[0]))

    def passed_on(self, before: Any, after: Any) -> None:
        """A call returned `before`, which its caller has as `after`."""
        for old, new in zip(tree.leaves(before), tree.leaves(after), strict=True):
            fact = self._facts.get(id(old)) if isinstance(old, torch.Tensor) else None
            if fact is not None:
                self._add(ReplayStep("same", "same", ((old,), {}), new), fact)
                self._memory(new).join(self._memory(old))

    def _add(self, step: ReplayStep, fact: Fact) -> None:
        self.replay.steps.append(step)
        for value in tree.leaves(step.result):
            if isinstance(value, torch.Tensor):
                self._facts[id(value)] = fact

    def _changed(
        self,
        kind: str,
        target: Any,
        arguments: Any,
        tensors: list[torch.Tensor],
        result: Any,
        name: str,
    ) -> None:
        """An operation in place: the value is another one, or not known any more."""
        facts = [self._fact(t) for t in tensors]
        own = facts[0]
        if own is None:
            return
        if own.oldest < 0 and self._asked_tables:
            raise CaptureError(
                "VR602", "a forward decides on the values of a tensor that it changes itself"
            )
        numbers = [v.deps for v in tree.leaves(arguments) if isinstance(v, Tracked)]
        if None in facts or own.oldest < 0 or name.removesuffix("_") in RANDOM:
            self.replay.steps.append(ReplayStep("", None, ((tensors[0],), {}), None))
            return
        deps = frozenset().union(*(f.deps for f in facts if f), *numbers)
        oldest = min(f.oldest for f in facts if f)
        self.replay.steps.append(ReplayStep(kind, target, arguments, tensors[0]))
        self._memory(tensors[0]).change(Fact(deps, oldest, uniform=False))

    def _fact(self, tensor: torch.Tensor) -> Fact | None:
        found = self._facts.get(id(tensor))
        if found is None and not self.values.has(tensor) and id(tensor) in self._constants():
            found = self._facts[id(tensor)] = Fact(frozenset(), -1, uniform=False)
        changed = (
            self._memories[id(tensor)].whole().changed if id(tensor) in self._memories else None
        )
        return found and found.after(changed)

    def _memory(self, tensor: torch.Tensor) -> Memory:
        return self._memories.setdefault(id(tensor), Memory())

    def _constants(self) -> dict[int, torch.Tensor]:
        """Tables that no checkpoint holds and plain tensor attributes, where they have values."""
        if self._tables is None:
            held = [v for m in walk.modules(self.model) for v in m.__dict__.values()]
            held = [v for v in held if isinstance(v, torch.Tensor)]
            found = [*(t for _, t in tables(self.model)), *held]
            self._tables = {id(t): t for t in found if not t.is_meta}
        return self._tables

    def _shape_deps(self, tensor: torch.Tensor) -> Deps:
        others = enumerate(self.values.all(tensor)[1:])
        return frozenset(i for i, t in others if t is not None and t.shape != tensor.shape)

    def deps(self, tensor: torch.Tensor) -> Deps:
        """The witnesses under which a known value may differ; none if it is not known."""
        fact = self._fact(tensor)
        return frozenset() if fact is None else fact.deps

    # -- when somebody asks -----------------------------------------------------------------------

    def answer(self, frame: Frame, tensor: torch.Tensor) -> Answer | None:
        """The value of a tensor, if it is known and the same in every precision."""
        fact = self._fact(tensor)
        if fact is None:
            return None
        with frame.recorder.off(), torch.no_grad():
            value = self.replay.value((-1, None), tensor)
            if value is None or any(
                not _equal(value, self.replay.value((-1, d), tensor)) for d in _DTYPES
            ):
                return None
            others = tuple(self.replay.value((i, None), tensor) for i in range(self.values.count))
        self._asked_tables = self._asked_tables or fact.oldest < 0
        for each in frame.recorder.frames:  # with other values the call may be another program
            each.repeatable = each.repeatable and fact.oldest >= each.first_step
        return Answer(value, others, fact)


def _marked(frame: Frame, value: Any) -> Any:
    """The arguments with the dtypes that were read off a tensor told apart."""
    if isinstance(value, torch.dtype):
        return Read(value) if frame.has_read(value) else value
    if type(value) in (tuple, list):
        return type(value)(_marked(frame, v) for v in value)
    return {k: _marked(frame, v) for k, v in value.items()} if type(value) is dict else value


def _equal(a: torch.Tensor, b: torch.Tensor | None) -> bool:
    if b is None or a.shape != b.shape:
        return False
    return torch.equal(a.double(), b.double()) if not a.is_complex() else torch.equal(a, b)
