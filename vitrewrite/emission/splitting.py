"""Gives modules of one kind the same inputs, in one order, where some read one value for two.

A layer that adds the same positions to queries twice has one input for them; another one, whose
positions differ, has two. Given the first one's value twice, both are one class.
"""

from __future__ import annotations

from itertools import permutations
from typing import Any

from torch import fx, nn

from ..tracing.notes import HINT, WIRED, copied, shared
from ..tracing.packing import packing
from ..tracing.unit import Unit
from .aligning import aligned
from .joining import holds_less, join
from .widening import by_kind, called_alone, replace_templates

Inputs = list[tuple[fx.Node | None, fx.Node]]
"""Inputs of one program as another one has them, in its order; None is what that one lacks."""


def split_inputs(root: nn.Module) -> None:
    """Changes templates in place of which modules can then share a class with others."""
    while _split_one(root):
        pass


def _split_one(root: nn.Module) -> bool:
    units, kinds = by_kind(root)
    pairs = (pair for groups in kinds for pair in permutations(groups, 2))
    return any(_split(few, many, units) for few, many in pairs)


def _split(few: list[Unit], many: list[Unit], units: list[Unit]) -> bool:
    """Has some units take what others take, and more; whether they now can share a class."""
    small, large = few[0].template, many[0].template
    assert small is not None
    assert large is not None
    modes = small.training or large.training
    if modes or len(_inputs(small.graph)) < 2 or not holds_less(few[0], many[0]):
        return False
    made = large.clone()
    before = _inputs(made.graph)
    pair = {a: b for a, b in aligned(small.graph, made.graph).items() if a.op != "placeholder"}
    inputs = _matched(small.graph, made.graph, pair)
    if inputs is None or [own for _, own in inputs] == before:
        return False
    places = [before.index(own) for _, own in inputs]
    _retake(made.graph, inputs, pair)
    calls = called_alone(many, units)
    if calls is None or join(small, made, few, many) is None:
        return False
    for graph, target in replace_templates(calls, many, made, units):
        for node in graph.nodes:
            if node.op == "call_module" and node.target == target:
                node.args = tuple(node.args[place] for place in places)
    return True


def _inputs(graph: fx.Graph) -> list[fx.Node]:
    return [n for n in graph.nodes if n.op == "placeholder"]


class _OtherwiseError(Exception):
    """Two programs that do more than read other inputs."""


def _matched(small: fx.Graph, large: fx.Graph, pair: dict[fx.Node, fx.Node]) -> Inputs | None:
    """The inputs of the larger program as the smaller one has them, or None.

    The programs must do the same, but that the larger one hands on what the other does without.
    """
    sizes = {len(g.nodes) - len(_inputs(g)) for g in (small, large)}
    if sizes != {len(pair)} or packing(small) or packing(large):
        return None
    read: dict[fx.Node, fx.Node] = {}
    more: dict[fx.Node, None] = {}
    try:
        for ours, theirs in pair.items():
            _compare((ours.args, ours.kwargs), (theirs.args, theirs.kwargs), pair, read, more)
    except _OtherwiseError:
        return None
    lacking = [n for n in more if n not in read.values()]
    if set(read) != set(_inputs(small)) or {*read.values(), *lacking} != set(_inputs(large)):
        return None
    return [*((n, read[n]) for n in _inputs(small)), *((None, n) for n in lacking)]


def _compare(
    ours: Any,
    theirs: Any,
    pair: dict[fx.Node, fx.Node],
    read: dict[fx.Node, fx.Node],
    more: dict[fx.Node, None],
) -> None:
    """Notes which inputs are read in one another's place.

    Raises:
        _OtherwiseError: if more differs than that.
    """
    if isinstance(ours, fx.Node) and isinstance(theirs, fx.Node):
        inputs = [n.op == "placeholder" for n in (ours, theirs)]
        alike = read.setdefault(ours, theirs) if all(inputs) else pair.get(ours)
        if alike is not theirs:
            raise _OtherwiseError
    elif isinstance(ours, (tuple, list)) and isinstance(theirs, (tuple, list)):
        rest = theirs[len(ours) :]
        if len(ours) > len(theirs) or not all(_is_input(n) for n in rest):
            raise _OtherwiseError
        more.update(dict.fromkeys(rest))
        for one, other in zip(ours, theirs, strict=False):
            _compare(one, other, pair, read, more)
    elif isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        for key, one in ours.items():
            _compare(one, theirs[key], pair, read, more)
    elif type(ours) is not type(theirs) or repr(ours) != repr(theirs):
        raise _OtherwiseError


def _is_input(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.op == "placeholder"


def _retake(large: fx.Graph, inputs: Inputs, pair: dict[fx.Node, fx.Node]) -> None:
    """Has a program take inputs in an order, one for each of the smaller one's."""
    first = next(n for n in large.nodes if n.op != "placeholder")
    taken: dict[fx.Node, fx.Node] = {}
    for ours, theirs in inputs:
        own = theirs
        if theirs in taken.values():
            with large.inserting_before(first):
                own = large.placeholder(f"{theirs.name}_again")
            copied(theirs, own)
        first.prepend(own)
        if ours is not None:
            taken[ours] = own
            WIRED.drop(own)
            shared(ours, own, HINT, WIRED)
    for one, other in pair.items():
        other.args = _with(one.args, other.args, taken)
        other.kwargs = {k: _with(one.kwargs[k], v, taken) for k, v in other.kwargs.items()}


def _with(ours: Any, theirs: Any, taken: dict[fx.Node, fx.Node]) -> Any:
    """Arguments that read the new inputs where the smaller program reads its own."""
    if isinstance(ours, fx.Node):
        return taken.get(ours, theirs)
    if isinstance(ours, (tuple, list)):
        same = [_with(a, b, taken) for a, b in zip(ours, theirs, strict=False)]
        return type(theirs)([*same, *theirs[len(ours) :]])
    if isinstance(ours, dict):
        return {k: _with(v, theirs[k], taken) for k, v in ours.items()}
    return theirs
