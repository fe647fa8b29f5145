"""Decisions on the values of tensors: both ways are traced, and the values are selected.

`if not torch.isfinite(x).all(): x = torch.clamp(x, ...)` becomes
`torch.where(torch.isfinite(x).all(), x, torch.clamp(x, ...))`: the same values and gradients, and
a program without jumps. That needs both ways to do nothing but compute.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from ..errors import CaptureError
from . import places
from .frame import Frame
from .joining import Join, UnlikeError
from .memo import Entry
from .notes import OUTCOME, VALUE, copied
from .numbers import Tracked
from .operators import is_impure
from .sizes import FIXED, OTHER, OWN, may_go_on
from .template import Template
from .witness import IMAGE

if TYPE_CHECKING:
    from .recorder import Recorder

_MOST = 3  # decisions in one forward, each of which doubles the work


class UndecidedError(BaseException):
    """A forward asks for the value of a tensor; not an `Exception`, so that no model catches it.

    Attributes:
        frame: the forward that asks.
        sizes: whether it asks how sizes compare.
        place: the line that does.
    """

    def __init__(self, frame: Frame, sizes: bool = False) -> None:
        super().__init__()
        self.frame = frame
        self.sizes = sizes
        self.place = places.here() or ""


@dataclass(frozen=True)
class Outcome:
    """One way through a forward: its graph, and the conditions that were decided."""

    entry: Entry
    conditions: tuple[fx.Node | None, ...]
    lost: frozenset[fx.Node] = frozenset()
    doubt: fx.Node | None = None


def decide(frame: Frame, condition: torch.Tensor) -> bool:
    """The truth of a tensor on the way that is traced now.

    Raises:
        UndecidedError: if it is a new question.
    """
    node = frame.arg(condition)
    certain = _certain(node)
    if certain is not None:
        return certain
    if len(frame.asked) == len(frame.decisions):
        raise UndecidedError(frame)
    frame.asked.append(node)
    return bool(frame.decisions[len(frame.asked) - 1])


def choose(
    frame: Frame, op: Callable[..., Any], args: tuple[Any, ...], outcome: bool
) -> bool | None:
    """How a comparison of sizes goes on the way that is traced now; None if it is a guard.

    Raises:
        UndecidedError: if it is a new question.
    """
    under = [_under(a) for a in args]
    dead = IMAGE in frame.recorder.values.dead or any(u is None for u in under)
    if dead or bool(op(*under)) == outcome or any(_of_other(frame, a) for a in args):
        return None
    if len(frame.asked) == len(frame.decisions):
        raise UndecidedError(frame, sizes=True)
    way = frame.decisions[len(frame.asked)]
    if way == FIXED:
        frame.asked.append(None)
        return None
    node = frame.graph.call_function(op, tuple(frame.arg(a) for a in args))
    frame.asked.append(node)
    OUTCOME.put(node, outcome)
    return outcome if way == OWN else not outcome


def _under(value: Any) -> Any:
    """A number under the witness of another image size, None if there is none."""
    if not isinstance(value, Tracked):
        return value
    return value.witnesses[IMAGE] if len(value.witnesses) > IMAGE else None


def _of_other(frame: Frame, value: Any) -> bool:
    """Whether a number belongs to another forward, and was not passed to this one."""
    foreign = isinstance(value, Tracked) and value.frame is not frame
    return foreign and id(value) not in frame.nodes


def _certain(node: fx.Node) -> bool | None:
    """The truth of `torch.rand([]) < p`, as libraries skip layers, where p is 0 or 1."""
    if node.target not in (operator.lt, operator.ge) or len(node.args) != 2:
        return None
    drawn, p = node.args
    uniform = isinstance(drawn, fx.Node) and drawn.target in (torch.rand, torch.rand_like)
    if not uniform or not isinstance(p, (int, float)) or 0 < p < 1:
        return None
    return (p >= 1) == (node.target is operator.lt)


def explore(
    run: Callable[[tuple[Any, ...]], Outcome],
    off: Callable[[], AbstractContextManager[None]],
    where: str,
    decisions: tuple[Any, ...] = (),
) -> Outcome:
    """Traces a forward on every way through it.

    Args:
        run: traces it with the first decisions given.
        off: the context in which nothing is recorded.
        where: the path of the module.
        decisions: those taken so far.

    Raises:
        CaptureError: VR602 if the ways differ in more than values, or are too many.
    """
    try:
        return run(decisions)
    except UndecidedError as question:
        if question.frame.path != where:
            raise
        sizes, recorder = question.sizes, question.frame.recorder
        module, dead = question.frame.module, question.frame.dead
        place = where, question.place

    def run_again(decisions: tuple[Any, ...]) -> Outcome:
        recorder.restore(module)  # what the last run left, such as a cache, is of another program
        recorder.values.dead = dict(dead)
        return run(decisions)

    if sizes:
        return _by_sizes(run_again, off, where, decisions, recorder)
    if sum(isinstance(d, bool) for d in decisions) == _MOST:
        raise _too_much(place, "too often")
    no = explore(run_again, off, where, (*decisions, False))
    fixed = dict(recorder.values.dead)
    yes = explore(run_again, off, where, (*decisions, True))
    recorder.values.dead = {**fixed, **recorder.values.dead}
    with off():
        return _joined(no, yes, len(decisions), place)


def _by_sizes(
    run: Callable[[tuple[Any, ...]], Outcome],
    off: Callable[[], AbstractContextManager[None]],
    where: str,
    decisions: tuple[Any, ...],
    recorder: Recorder,
) -> Outcome:
    """Traces both ways from a comparison of sizes; the example's alone if they are not alike."""
    values, dead, failed = recorder.values, dict(recorder.values.dead), recorder.failed_in
    try:
        if not may_go_on(decisions):
            raise UnlikeError
        other = explore(run, off, where, (*decisions, OTHER))
        if IMAGE in values.dead and OWN not in decisions:
            raise UnlikeError
        own = explore(run, off, where, (*decisions, OWN))
        values.dead = dict(dead)  # what the example's way cannot carry is carried by the other
        with off():
            return _of_sizes(own, other, len(decisions))
    except Exception:  # whatever a forward may do at sizes that it does not expect
        values.dead, recorder.failed_in = dict(dead), failed
        return explore(run, off, where, (*decisions, FIXED))


def _of_sizes(own: Outcome, other: Outcome, number: int) -> Outcome:
    condition = other.conditions[number]
    assert condition is not None
    graph, before = other.entry.template.graph, own.entry.template.graph
    same = _shared(graph, before, condition)
    outcome = OUTCOME.of(condition)
    join = Join(before, graph, same, condition, outcome, own.lost, own.doubt)
    entry = replace(
        other.entry, template=Template(other.entry.template.name, join.run()), decided=True
    )
    return Outcome(entry, other.conditions, other.lost, other.doubt)


Where = tuple[str, str]
"""The path of the forward that decides, and the line."""


def _too_much(where: Where, why: str) -> CaptureError:
    path, line = where
    return CaptureError(
        "VR602",
        f"'{path or 'the root'}' decides on the values of a tensor, which are not known when it "
        f"is captured, {why}, in {line}",
    )


def _joined(no: Outcome, yes: Outcome, number: int, where: Where) -> Outcome:
    graph = no.entry.template.graph
    condition = no.conditions[number]
    assert condition is not None
    end = graph.output_node()
    same = _shared(graph, yes.entry.template.graph, condition)
    _pure(graph, set(same.values()), where)
    _pure(yes.entry.template.graph, set(same), where)
    with graph.inserting_before(end):
        for node in yes.entry.template.graph.nodes:
            if node not in same and node.op != "output":
                same[node] = graph.node_copy(node, lambda n: same[n])
                copied(node, same[node])
        other = fx.node.map_arg(yes.entry.template.graph.output_node().args[0], lambda n: same[n])
        end.args = (_selected(graph, condition, other, end.args[0], where),)
    entry = replace(
        no.entry,
        template=Template(no.entry.template.name, graph),
        assignments={**yes.entry.assignments, **no.entry.assignments},
        decided=True,
    )
    return Outcome(entry, no.conditions)


def _shared(no: fx.Graph, yes: fx.Graph, condition: fx.Node) -> dict[fx.Node, fx.Node]:
    """What both ways do up to the decision: nodes of `no` by those of `yes`.

    What only one way reads, such as a dtype, may stand at the top of its graph.
    """
    same: dict[fx.Node, fx.Node] = {}
    left: list[fx.Node] = list(no.nodes)
    for theirs in yes.nodes:
        args, kwargs = (
            fx.node.map_arg(a, lambda n: same.get(n, n)) for a in (theirs.args, theirs.kwargs)
        )
        for mine in left:
            if (mine.op, mine.target, mine.args, mine.kwargs) == (
                theirs.op, theirs.target, args, kwargs,
            ):  # fmt: skip
                same[theirs] = mine
                left.remove(mine)
                break
        if same.get(theirs) is condition:
            break
    return same


def _pure(graph: fx.Graph, shared: set[fx.Node], where: Where) -> None:
    own = (n for n in graph.nodes if n not in shared and n.op != "output")
    if any(is_impure(n) or n.op == "call_module" for n in own):
        raise _too_much(where, "to do more than to compute")


def _selected(graph: fx.Graph, condition: fx.Node, yes: Any, no: Any, where: Where) -> Any:
    """The outputs of either way, node by node."""
    if yes is no or (not _nodes(yes) and not _nodes(no) and yes == no):
        return no
    if isinstance(yes, fx.Node) and isinstance(no, fx.Node):
        a, b = VALUE.get(yes), VALUE.get(no)
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.shape == b.shape:
            node = graph.call_function(torch.where, (condition, yes, no))
            VALUE.put(node, b)
            return node
    if isinstance(yes, (tuple, list)) and type(yes) is type(no) and len(yes) == len(no):
        return type(no)(
            _selected(graph, condition, a, b, where) for a, b in zip(yes, no, strict=True)
        )
    if isinstance(yes, dict) and isinstance(no, dict) and yes.keys() == no.keys():
        return {k: _selected(graph, condition, yes[k], no[k], where) for k in no}
    raise _too_much(where, "to return something else")


def _nodes(value: Any) -> bool:
    found: list[fx.Node] = []
    fx.node.map_arg(value, found.append)
    return bool(found)
