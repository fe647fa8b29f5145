"""Forwards that read a dtype are tried in a third one.

`if x.dtype == torch.float16: x = x.clamp(...)` is no constant, and is the same program in float32
and bfloat16. Such a forward alone is traced again; what it calls gives what it gave, in that dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from ..errors import CaptureError
from . import tree
from .comparison import Mismatch, compare
from .diagnosis import guard_dtypes
from .history import PastCall
from .inputs import Aspects, dtype_of
from .memo import Entry
from .runs import Given, TraceRun, again
from .sizes import is_joined
from .template import Template

Kinds = tuple[torch.dtype, torch.dtype, torch.dtype]
"""The dtype of the program, that of the trace which checks it, and the third."""


class Thirds:
    """The programs of a model that are others in a third dtype.

    Args:
        given: what was traced.
        control: the trace that checks the others.
        dtype: what the model was cast to in `control`; nothing is looked for if it was not.
    """

    def __init__(self, given: Given, control: TraceRun, dtype: torch.dtype | None) -> None:
        self._given, self._control = given, control
        self._found: list[tuple[Template, list[PastCall]]] = []
        self._seen: set[int] = set()
        self._wholes: dict[bool, TraceRun | None] = {}
        first = dtype_of(given.model, given.example)
        self._kinds: Kinds | None = None
        if dtype is not None and first is not None:
            last = next(k for k in _KINDS if k not in (first, dtype))
            self._kinds = first, dtype, last

    def look(
        self, run: TraceRun, assignments: dict[str, Any], calls: Calls, *, training: bool
    ) -> None:
        """Tries programs whose forwards read a dtype, while what they read is undecided.

        Args:
            run: a trace under the inputs that they are from.
            assignments: the programs by path.
            calls: the calls that each stands for.
            training: their mode.
        """
        tried = list(self._new(assignments, calls))
        recalls = {path: cast for path, mine in tried if (cast := self._cast(path, calls(mine)))}
        alone = dict(zip(recalls, again(run, [*recalls.values()], training=training), strict=True))
        for path, mine in tried:
            found = alone.get(path)
            if found is not None and _are_same(mine, found):
                continue
            if not self._is_same_in_whole(path, mine, training=training):
                self._found.append((mine, calls(mine)))

    def _new(self, assignments: dict[str, Any], calls: Calls) -> Iterator[tuple[str, Template]]:
        """Paths and programs whose forwards read a dtype, and that were not tried yet."""
        for path, mine in assignments.items():
            if self._kinds is None or not isinstance(mine, Template) or id(mine) in self._seen:
                continue
            self._seen.add(id(mine))
            if any(map(_reads, calls(mine))) and not is_joined(mine.graph):
                yield path, mine

    def _cast(self, path: str, own: list[PastCall]) -> _CastCall | None:
        """The call of a forward in the third dtype, if there is one call of it."""
        theirs = self._control.assignments.get(path)
        other = self._control.calls(theirs) if isinstance(theirs, Template) else []
        if self._kinds is None or len(own) != 1 or len(other) != 1:
            return None
        return _CastCall(own[0], other[0], self._kinds)

    def _is_same_in_whole(self, path: str, mine: Template, *, training: bool) -> bool:
        """Whether the trace of the whole model in the third dtype says so."""
        if training not in self._wholes:
            assert self._kinds is not None
            aspects = Aspects(dtype=self._kinds[2])
            try:
                self._wholes[training] = TraceRun(self._given, training=training, aspects=aspects)
            except CaptureError:
                self._wholes[training] = None
        whole = self._wholes[training]
        found = None if whole is None else whole.assignments.get(path)
        return isinstance(found, Template) and _are_same(mine, found)

    def note(self, run: TraceRun, path: str) -> None:
        """Notes a forward that failed in the second dtype, if it read one."""
        template = run.assignments.get(path)
        if isinstance(template, Template) and any(map(_reads, run.calls(template))):
            self._found.append((template, run.calls(template)))

    def guard(self) -> None:
        """Lets these programs check that they run in a dtype that was tried."""
        for template, calls in self._found:
            guard_dtypes(calls, template, (self._kinds or ())[:2])


Calls = Callable[[Template], list[PastCall]]
_KINDS = (torch.float16, torch.bfloat16, torch.float32)


def _reads(call: PastCall) -> bool:
    return any(
        isinstance(value, torch.dtype) and value.is_floating_point and what
        for value, _, what in call.read
    )


def _are_same(mine: Template, other: Template) -> bool:
    return not isinstance(compare(mine.graph, other.graph), Mismatch)


class _CastCall:
    """A call as it would be in the third dtype."""

    def __init__(self, mine: PastCall, theirs: PastCall, kinds: Kinds) -> None:
        self.call, self._theirs, self._kinds = mine, theirs, kinds

    @property
    def dtype(self) -> torch.dtype:
        """What the model is cast to."""
        return self._kinds[2]

    def arguments(self) -> Any:
        """What it is called with."""
        mine, theirs = (self.call.args, self.call.kwargs), (self._theirs.args, self._theirs.kwargs)
        return self._like(mine, theirs)

    def answer(self, target: str, number: int) -> Entry:
        """What a call in it gives."""
        mine, theirs = self.call.called, self._theirs.called
        if number >= len(mine) or number >= len(theirs):
            raise _ThirdUnlikeError
        if mine[number][0] != target or theirs[number][0] != target:
            raise _ThirdUnlikeError
        entry, other = mine[number][1], theirs[number][1]
        outputs = self._like(entry.outputs, other.outputs)
        found: Entry = replace(entry, outputs=outputs, witnesses=[])
        return found

    def _like(self, mine: Any, theirs: Any) -> Any:
        """A value in the third dtype, where it was in the first and in the second."""
        others = iter(list(tree.leaves(theirs)))
        first, second, last = self._kinds

        def cast(value: Any) -> Any:
            other = next(others, None)
            if not isinstance(value, torch.Tensor):
                return value
            if not isinstance(other, torch.Tensor):
                raise _ThirdUnlikeError
            dtype = value.dtype
            if dtype != other.dtype:
                if (dtype, other.dtype) != (first, second):
                    raise _ThirdUnlikeError
                dtype = last
            return torch.empty_strided(value.shape, value.stride(), dtype=dtype, device="meta")

        return tree.map_leaves(cast, mine)


class _ThirdUnlikeError(Exception):
    """It goes another way."""
