"""What left the tracer: numbers and dtypes that became constants of a program.

Two programs of one forward in one mode differ, and so something in them is a size or a dtype that
Python code computed with where no tracer can follow (`str`, `range`, numpy). Traces that differ in
one respect each say in which. A batch size is refused; an image size is what the model is then
fixed in; a dtype is guarded where it is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import fx

from ..errors import CaptureError
from .comparison import Mismatch, compare, left_by
from .dtypes import Choices
from .guards import check_dtype, require_dtype
from .history import PastCall
from .inputs import BATCHES, Aspects
from .notes import VALUE
from .places import of_forward
from .runs import Given, TraceRun
from .sizes import is_joined
from .template import Template
from .witness import IMAGE


class Escapes:
    """Looks for what escaped in two traces, under the inputs of a third.

    Args:
        given: what was traced.
        aspects: in what the inputs may differ.
        runs: the traces of both modes.

    Attributes:
        choices: what the uses of dtypes may be.
        fixed: in what the model turns out to be fixed, and why.

    Raises:
        CaptureError: VR605 if a batch size escaped, VR615 for what depends on several respects at
            once.
    """

    def __init__(self, given: Given, aspects: Aspects, *runs: TraceRun) -> None:
        self.given = given
        self.fixed: dict[int, str] = {}
        self._unguarded: list[tuple[TraceRun, Template, str]] = []
        self._found: list[Choices] = []
        for run in runs:
            self._batch(run, aspects.batch)
            if aspects.scaled:
                self._size(run)
            if aspects.dtype is not None:
                self._dtype(run, aspects.dtype)
        self.choices = left_by(self._found)

    def _batch(self, run: TraceRun, batch: int | None) -> None:
        for each in (batch, BATCHES[1]):
            # What a check of the program covers may be otherwise under a batch of any size.
            control = self._run(run, Aspects(each))
            differences = list(self._differences(run, control))
            unchecked = [d for d in differences if each == BATCHES[1] or not d[3]]
            if unchecked:
                _, _, where, _ = unchecked[0]
                raise CaptureError("VR605", f"the batch size is built into the model ({where})")
            if not differences:
                return

    def _size(self, run: TraceRun) -> None:
        try:
            control = self._run(run, Aspects(scaled=True))
        except CaptureError as error:
            self.fixed[IMAGE] = error.message
            return
        for _, _, where, _ in self._differences(run, control):
            self.fixed.setdefault(IMAGE, where)

    def _dtype(self, run: TraceRun, dtype: torch.dtype) -> None:
        try:
            control = self._run(run, Aspects(dtype=dtype))
        except CaptureError:
            return
        for path, template, where, _ in self._differences(run, control, self._found):
            self._unguarded.append((run, template, f"'{path or 'the root'}', {where}"))

    def _run(self, run: TraceRun, aspects: Aspects) -> TraceRun:
        return TraceRun(self.given, training=run.training, aspects=aspects, other=run, places=True)

    def _differences(
        self, run: TraceRun, control: TraceRun, choices: list[Choices] | None = None
    ) -> Iterator[tuple[str, Template, str, bool]]:
        """Path, program, place in the source, and whether checks explain it."""
        seen: set[tuple[int, int]] = set()
        for path, mine in run.assignments.items():
            theirs = control.assignments.get(path)
            if not isinstance(mine, Template) or (id(mine), id(theirs)) in seen:
                continue
            seen.add((id(mine), id(theirs)))
            if not isinstance(theirs, Template) or is_joined(mine.graph):
                continue  # whoever calls it differs, too; or it went both ways, unlike the other
            found = compare(mine.graph, theirs.graph)
            if isinstance(found, Mismatch):
                checked = run.trails(mine) != control.trails(theirs)
                yield path, mine, self._where(control, theirs, found, path), checked
            elif choices is not None:
                choices.append(found)

    def _where(self, control: TraceRun, template: Template, found: Mismatch, path: str) -> str:
        places = control.recorder.places or {}
        node = found.second
        # A number has no place of its own: it stands where it is used.
        while node not in places and node.users:
            node = next(iter(node.users))
        place = places.get(node) or of_forward(control.calls(template))
        return f"{place}, in '{path or 'the root'}'"

    def guard(self) -> None:
        """Lets each program that depends on a dtype check the dtypes that it reads.

        Raises:
            CaptureError: VR615 if it has none to check.
        """
        for run, template, where in self._unguarded:
            if not guard_dtypes(run.calls(template), template):
                raise CaptureError("VR615", f"a dtype is built into the model ({where})")


def guard_dtypes(
    calls: Iterable[PastCall], template: Template, kinds: tuple[torch.dtype, ...] = ()
) -> bool:
    """Lets a forward check the dtypes that it read, or else those of its inputs.

    Args:
        calls: those that the program stands for.
        template: the program.
        kinds: dtypes under which it is the same, if there are several.

    Returns:
        Whether there is anything to check, or is checked already.
    """
    guarded = any(n.target is check_dtype for n in template.graph.nodes)
    dtypes = [] if guarded else list(_read(calls, template))
    for node, value in dtypes:
        require_dtype(node, kinds if value in kinds else (value,))
    return guarded or bool(dtypes)


def _read(calls: Iterable[PastCall], template: Template) -> Iterator[tuple[fx.Node, torch.dtype]]:
    """The tensors of which a forward read a floating dtype, or else its inputs."""
    nodes = list(template.graph.nodes)
    found: dict[fx.Node, torch.dtype] = {}
    for call in calls:
        for value, node, what in call.read:
            known = isinstance(value, torch.dtype) and value.is_floating_point and node in nodes
            if known and what:
                found[node] = value
    if not found:
        for node in nodes:
            value = VALUE.get(node)
            given = node.op == "placeholder" and isinstance(value, torch.Tensor)
            if given and value.is_floating_point():
                found[node] = value.dtype
    yield from found.items()
