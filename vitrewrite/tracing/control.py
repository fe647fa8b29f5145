"""The programs of a model in both modes, none of which has a constant that was a size or dtype.

The trace in training runs under other inputs than the one in eval: another batch and image size,
another dtype. Where both wrote the same program, it depends on none of these, nor on the mode. A
module whose programs differ is traced by itself in the two combinations that are missing. What
still differs then is a number or dtype that left the tracer: see `diagnosis`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import CaptureError
from . import inputs
from .comparison import Mismatch, compare, left_by
from .diagnosis import Escapes
from .dtypes import Choices, decide
from .history import PastCall
from .inputs import Aspects
from .runs import FailedError, Given, TraceRun
from .sizes import is_joined
from .template import Template
from .thirds import Thirds
from .witness import IMAGE

Pair = tuple[Template, Template]


@dataclass
class Programs:
    """What both modes of a model are.

    Attributes:
        evaluation: the program (or torch layer) of each module by path, in eval mode.
        training: likewise, in training.
        fixed: in what the model is fixed, and why.
        runs: the traces that these programs are from.
        checkpointed: paths of what is computed again in backward.
        lost_checkpoints: forwards, parts of which were checkpointed.
    """

    evaluation: dict[str, Any]
    training: dict[str, Any]
    fixed: dict[int, str]
    runs: list[TraceRun]
    checkpointed: frozenset[str]
    lost_checkpoints: set[str]


def programs(given: Given) -> Programs:
    """Traces a model in both modes.

    Raises:
        CaptureError: if a forward cannot be followed, or computes with something that left the
            tracer and cannot be guarded.
    """
    evaluation = TraceRun(given, training=False)
    dtype = inputs.other_dtype(given.model, given.example)
    scaled = IMAGE not in evaluation.fixed
    most = Aspects(inputs.CONTROL_BATCH, scaled, dtype)
    control, aspects, failed = _control(given, most, evaluation)
    if control is None:  # in training it runs under no other inputs: there it is not checked
        training = TraceRun(given, training=True, other=evaluation)
        decide(_graphs(evaluation.assignments, training.assignments), {})
        return _of_runs(evaluation, training, {})
    if scaled and not aspects.scaled:
        evaluation.fixed.setdefault(IMAGE, "training")
    found = _Crosswise(evaluation, control)
    thirds = Thirds(given, control, aspects.dtype)
    thirds.look(evaluation, evaluation.assignments, evaluation.calls, training=False)
    if failed is not None:
        thirds.note(evaluation, failed)
    if found.complete:
        thirds.look(evaluation, found.training, found.calls, training=True)
        decide(found.graphs(), left_by(found.choices))
        thirds.guard()
        lost = control.recorder.lost_checkpoints
        both = evaluation.assignments, found.training
        return Programs(*both, evaluation.fixed, [evaluation], control.checkpointed, lost)
    training = TraceRun(given, training=True, other=evaluation)
    escapes = Escapes(given, aspects, evaluation, training)
    thirds.look(training, training.assignments, training.calls, training=True)
    decide(_graphs(evaluation.assignments, training.assignments), escapes.choices)
    escapes.guard()
    thirds.guard()
    return _of_runs(evaluation, training, escapes.fixed)


def _of_runs(evaluation: TraceRun, training: TraceRun, fixed: dict[int, str]) -> Programs:
    return Programs(
        evaluation.assignments,
        training.assignments,
        {**evaluation.fixed, **training.fixed, **fixed},
        [evaluation, training],
        training.checkpointed,
        training.recorder.lost_checkpoints,
    )


def _control(
    given: Given, most: Aspects, other: TraceRun
) -> tuple[TraceRun | None, Aspects, str | None]:
    """The trace in training under inputs as unlike those in eval as the model takes.

    Returns:
        Also the path of the forward that failed in another dtype, if one did.
    """
    failed: str | None = None
    unlike = [most, Aspects(most.batch, most.scaled), Aspects(most.batch, dtype=most.dtype)]
    for aspects in dict.fromkeys([*unlike, Aspects(most.batch)]):
        try:
            control = TraceRun(given, training=True, aspects=aspects, other=other)
        except CaptureError as error:  # it may be one of the first trace, too; else that is right
            if aspects.dtype is not None and isinstance(error, FailedError):
                failed = error.path
        else:
            return control, aspects, failed if aspects.dtype is None else None
    return None, Aspects(), None


def _graphs(*assignments: dict[str, Any]) -> Iterator[Any]:
    found = (t for each in assignments for t in each.values() if isinstance(t, Template))
    for template in {id(t): t for t in found}.values():
        yield from template.graphs


class _Crosswise:
    """Eval and training, compared across mode and inputs at once.

    Attributes:
        complete: whether every program of either was found to depend on its mode at most.
        training: the programs in training under the inputs of `evaluation`, if it is complete.
        choices: what the uses of dtypes may be.
    """

    def __init__(self, evaluation: TraceRun, control: TraceRun) -> None:
        self.evaluation, self.control = evaluation, control
        self.training = dict(evaluation.assignments)
        self.choices: list[Choices] = []
        self._made: dict[int, list[PastCall]] = {}  # the calls of programs in training
        self.complete = evaluation.assignments.keys() == control.assignments.keys()
        if self.complete:
            unequal = self._unequal()
            self.complete = not unequal or self._explained(unequal)

    def graphs(self) -> Iterator[Any]:
        """Those of all programs under the inputs of `evaluation`."""
        yield from _graphs(self.evaluation.assignments, self.training)

    def calls(self, template: Template) -> list[PastCall]:
        """The calls that a program in training alone stands for."""
        return self._made.get(id(template), [])

    def _pairs(self) -> dict[tuple[int, int], list[str]]:
        """The paths of each two programs that are one module's."""
        found: dict[tuple[int, int], list[str]] = {}
        for path, mine in self.evaluation.assignments.items():
            theirs = self.control.assignments[path]
            if isinstance(mine, Template) and isinstance(theirs, Template):
                found.setdefault((id(mine), id(theirs)), []).append(path)
        return found

    def _unequal(self) -> dict[tuple[int, int], list[str]]:
        """Pairs that differ; the choices of the others are noted."""
        unequal = {}
        for pair, paths in self._pairs().items():
            mine, theirs = (r.assignments[paths[0]] for r in (self.evaluation, self.control))
            found = compare(mine.graph, theirs.graph)
            joined = is_joined(mine.graph)
            if joined or isinstance(found, Mismatch) or not self._same_trails(mine, theirs):
                unequal[pair] = paths
            else:
                self.choices.append(found)
        return unequal

    def _same_trails(self, mine: Template, theirs: Template) -> bool:
        return self.evaluation.trails(mine) == self.control.trails(theirs)

    def _explained(self, unequal: dict[tuple[int, int], list[str]]) -> bool:
        """Whether the mode alone makes the programs differ."""
        firsts = [paths[0] for paths in unequal.values()]
        mine = [self.evaluation.assignments[p] for p in firsts]
        theirs = [self.control.assignments[p] for p in firsts]
        shared = [
            {id(t) for t in run.assignments.values() if isinstance(t, Template)}
            - {id(t) for t in given}
            for run, given in ((self.evaluation, mine), (self.control, theirs))
        ]
        training = self.evaluation.in_other_mode(mine, shared[0])
        evaluation = self.control.in_other_mode(theirs, shared[1])
        rows = zip(unequal.values(), mine, theirs, training, evaluation, strict=True)
        for paths, a, b, (in_training, made), (in_eval, _) in rows:
            if in_training is not None and is_joined(a.graph):
                # It went both ways from a decision on sizes, the other trace one of them.
                self.training.update(dict.fromkeys(paths, in_training))
                continue
            if in_training is None or in_eval is None:
                return False
            found = compare(a.graph, in_eval.graph), compare(in_training.graph, b.graph)
            if any(isinstance(f, Mismatch) for f in found):
                return False
            self.choices += [f for f in found if not isinstance(f, Mismatch)]
            self.training.update(dict.fromkeys(paths, in_training))
            self._made[id(in_training)] = made
        return True
