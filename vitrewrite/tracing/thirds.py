"""Forwards that read a dtype are tried in a third one.

`if x.dtype == torch.float16: x = x.clamp(...)` is no constant, and is the same program in float32
and bfloat16. Such a forward alone is traced again; what it calls gives what it gave, in that dtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..errors import CaptureError
from . import tree
from .comparison import Difference, compare
from .escapes import guard_dtypes
from .history import Call
from .inputs import Aspects, dtype_of
from .memo import Entry
from .runs import Run, again
from .template import Template

Kinds = tuple[torch.dtype, torch.dtype, torch.dtype]
"""The dtype of the program, that of the trace which checks it, and the third."""


class Thirds:
    """The programs of a trace that are others in a third dtype.

    Args:
        model: what was traced.
        example: what it is called with.
        run: the trace that becomes the program.
        control: the one that checks it.
        dtype: what the model was cast to in `control`; nothing is looked for if it was not.
    """

    def __init__(
        self, model: nn.Module, example: Any, run: Run, control: Run, dtype: torch.dtype | None
    ) -> None:
        self._run, self._control = run, control
        self._kinds: tuple[torch.dtype, ...] = ()
        self._found: list[Template] = []
        first = dtype_of(model, example)
        if dtype is not None and first is not None:
            last = next(k for k in _KINDS if k not in (first, dtype))
            self._kinds = (first, dtype)
            self._found = list(self._unlike(model, example, (first, dtype, last)))

    def guard(self) -> None:
        """Lets these programs check that they run in one of the first two."""
        for template in self._found:
            guard_dtypes(self._run, template, self._kinds)

    def _unlike(self, model: nn.Module, example: Any, kinds: Kinds) -> Iterator[Template]:
        suspects = list(self._suspects(kinds))
        if not suspects:
            return
        try:
            aspects = Aspects(dtype=kinds[2])
            whole = Run(model, example, training=self._run.training, aspects=aspects)
        except CaptureError:
            yield from (template for _, template in suspects)
            return
        for path, template in suspects:
            found = whole.assignments.get(path)
            if not isinstance(found, Template) or not _are_same(template, found):
                yield template

    def _suspects(self, kinds: Kinds) -> Iterator[tuple[str, Template]]:
        """Paths and programs that by themselves may be others."""
        tried: set[int] = set()
        for path, mine in self._run.assignments.items():
            if not isinstance(mine, Template) or id(mine) in tried or not _reads(self._run, mine):
                continue
            tried.add(id(mine))
            theirs = self._control.assignments.get(path)
            if not isinstance(theirs, Template) or not _is_same(
                self._run, self._control, mine, theirs, kinds
            ):
                yield path, mine


_KINDS = (torch.float16, torch.bfloat16, torch.float32)


def _reads(run: Run, template: Template) -> bool:
    return any(
        isinstance(value, torch.dtype) and value.is_floating_point and what
        for call in run.calls(template)
        for value, _, what in call.read
    )


def _is_same(run: Run, control: Run, mine: Template, theirs: Template, kinds: Kinds) -> bool:
    """Whether a forward by itself is the same program in the third dtype, as far as can be seen."""
    own, other = run.calls(mine), control.calls(theirs)
    if len(own) != 1 or len(other) != 1:
        return False
    found = again(run, _Cast(own[0], other[0], kinds))
    return found is not None and _are_same(mine, found)


def _are_same(mine: Template, other: Template) -> bool:
    return not isinstance(compare(mine.graph, other.graph), Difference)


class _Cast:
    """A call as it would be in the third dtype."""

    def __init__(self, mine: Call, theirs: Call, kinds: Kinds) -> None:
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
            raise _UnlikeError
        if mine[number][0] != target or theirs[number][0] != target:
            raise _UnlikeError
        entry, other = mine[number][1], theirs[number][1]
        outputs = self._like(entry.outputs, other.outputs)
        return Entry(entry.template, outputs, [], entry.assignments)

    def _like(self, mine: Any, theirs: Any) -> Any:
        """A value in the third dtype, where it was in the first and in the second."""
        others = iter(list(tree.leaves(theirs)))
        first, second, last = self._kinds

        def cast(value: Any) -> Any:
            other = next(others, None)
            if not isinstance(value, torch.Tensor):
                return value
            if not isinstance(other, torch.Tensor):
                raise _UnlikeError
            dtype = value.dtype
            if dtype != other.dtype:
                if (dtype, other.dtype) != (first, second):
                    raise _UnlikeError
                dtype = last
            return torch.empty_strided(value.shape, value.stride(), dtype=dtype, device="meta")

        return tree.map_leaves(cast, mine)


class _UnlikeError(Exception):
    """It goes another way."""
