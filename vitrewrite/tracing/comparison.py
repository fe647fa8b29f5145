"""Whether two traces of a forward under unlike inputs are one program.

Only what decides the outputs and effects counts: checks, and what only these read, are left out.
Where both are one program, each use of a dtype is left with what it may be under either input.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from .dtypes import Choices, candidates, is_use
from .guards import is_guard
from .nodes import is_size
from .notes import VALUE
from .numbers import Tracked
from .operators import is_impure


@dataclass(frozen=True)
class Mismatch:
    """The first place where two programs part: what stands there in either."""

    first: fx.Node
    second: fx.Node


def compare(first: fx.Graph, second: fx.Graph) -> Choices | Mismatch:
    """Where two programs differ, or what the uses of dtypes in `first` may be."""
    return _Comparison(first, second).run()


class _UnlikeError(Exception):
    """Two nodes do something else."""


class _Comparison:
    def __init__(self, first: fx.Graph, second: fx.Graph) -> None:
        self.steps = _steps(first), _steps(second)
        self.members = set(self.steps[0]), set(self.steps[1])
        self.match: dict[fx.Node, fx.Node] = {}
        self.equal: set[tuple[fx.Node, fx.Node]] = set()  # of those that are no steps
        self.choices: Choices = {}

    def run(self) -> Choices | Mismatch:
        for mine, theirs in zip(*self.steps, strict=False):
            try:
                self._same_call(mine, theirs)
            except _UnlikeError:
                return Mismatch(mine, theirs)
            self.match[mine] = theirs
        # Both end in an output, so that of unequal programs two nodes above differed.
        return self.choices

    def _same_call(self, mine: fx.Node, theirs: fx.Node) -> None:
        if mine.op != theirs.op:
            raise _UnlikeError
        if mine.op == "placeholder":
            return
        if mine.target is not theirs.target and mine.target != theirs.target:
            raise _UnlikeError
        self._same(mine.args, theirs.args)
        self._same(mine.kwargs, theirs.kwargs)

    def _same(self, a: Any, b: Any) -> None:
        if a is b:
            return
        if is_use(a) or is_use(b):
            self._same_use(a, b)
        elif _is_number(a) and type(b) in (int, float):
            return  # it is followed, while the other trace did not see that it has to be
        elif isinstance(a, fx.Node) or isinstance(b, fx.Node):
            if not (isinstance(a, fx.Node) and isinstance(b, fx.Node)):
                raise _UnlikeError
            self._same_node(a, b)
        elif type(a) is not type(b):
            raise _UnlikeError
        else:
            self._same_constant(a, b)

    def _same_constant(self, a: Any, b: Any) -> None:
        """Of one type; a structure may hold nodes."""
        if isinstance(a, (tuple, list)):
            self._same_items(a, b)
        elif isinstance(a, dict):
            self._same_items([*a, *a.values()], [*b, *b.values()])
        elif isinstance(a, slice):
            self._same_items((a.start, a.stop, a.step), (b.start, b.stop, b.step))
        elif not _equal(a, b):
            raise _UnlikeError

    def _same_items(self, a: Any, b: Any) -> None:
        if len(a) != len(b):
            raise _UnlikeError
        for x, y in zip(a, b, strict=True):
            self._same(x, y)

    def _same_node(self, a: fx.Node, b: fx.Node) -> None:
        if a in self.match:
            if self.match[a] is not b:
                raise _UnlikeError
        elif a in self.members[0] or b in self.members[1]:
            raise _UnlikeError  # one of them comes later
        elif (a, b) not in self.equal:
            self._same_call(a, b)
            self.equal.add((a, b))

    def _same_use(self, a: Any, b: Any) -> None:
        constant, mine = candidates(a)
        other, theirs = candidates(b)
        if not isinstance(other, torch.dtype):
            raise _UnlikeError
        left: list[Any] = [x for x in mine if any(self._are_same(x, y) for y in theirs)]
        left += [constant] if constant == other else []
        if not left:
            raise _UnlikeError
        if is_use(a):
            self.choices[a] = left

    def _are_same(self, a: fx.Node, b: fx.Node) -> bool:
        try:
            self._same_node(a, b)
        except _UnlikeError:
            return False
        return True


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, float):
        return a.hex() == str(b.hex())  # -0.0 is not 0.0, and NaN is NaN
    try:
        return bool(a == b)
    except Exception:  # an array of several values, or whatever else a model may hand over
        return False


def _steps(graph: fx.Graph) -> list[fx.Node]:
    """What decides outputs and effects, in order, without numbers and readings of dtypes."""
    live: set[fx.Node] = set()
    kept = (n for n in graph.nodes if is_impure(n) and not is_guard(n))
    waiting = list(kept)
    while waiting:
        node = waiting.pop()
        if node not in live:
            live.add(node)
            waiting += [] if is_use(node) or _is_number(node) else node.all_input_nodes
    return [n for n in graph.nodes if n in live and not _is_reading(n)]


def _is_reading(node: fx.Node) -> bool:
    """Where it stands says nothing: it was put where it was first needed, maybe by a check."""
    if node.op not in ("call_function", "call_method"):
        return False
    known = node.target is getattr and node.args[1] in ("dtype", "device", "ndim")
    return known or is_use(node) or is_size(node) or _is_number(node)


def _is_number(value: Any) -> bool:
    """Whether it is a node of a number that is followed."""
    return isinstance(value, fx.Node) and isinstance(VALUE.get(value), Tracked)


def left_by(several: Iterable[Choices]) -> Choices:
    """What uses may be under all inputs."""
    result: Choices = {}
    for choices in several:
        for use, left in choices.items():
            known = result.get(use, left)
            result[use] = [c for c in known if any(c is other for other in left)]
    return result
