"""Decisions on sizes that come out in another way at another image size.

`if (h, w) != self.grid: pos_embed = resize(pos_embed)` is traced both ways: as the example goes,
and as the witness of another image size goes. Both have to lead to values of one shape from which
the forward goes on alike; there the value is chosen as the model chooses it. The program is then
that of every size. Where that cannot be, the model is fixed in image size.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from .notes import OWN_FIRST

OWN, OTHER, FIXED = "own", "other", "fixed"
"""How a decision goes: as the example has it, as the witness has it, or as the example alone."""

_MOST = 4  # decisions of one forward, each of which doubles the work


def by_size(condition: bool, yes: Any, no: Any) -> Any:
    """Printed as `yes if condition else no`."""
    return yes if condition else no


def may_go_on(decisions: tuple[Any, ...]) -> bool:
    """Whether one more decision on sizes may be traced both ways."""
    return sum(d in (OWN, OTHER) for d in decisions) < _MOST


def chosen(graph: fx.Graph, condition: Any, yes: Any, no: Any, outcome: bool) -> Any:
    """`yes if condition else no`, in its shortest form, at the insertion point of a graph."""
    if yes is no:
        return yes

    def make(condition: Any, yes: Any, no: Any, own: bool) -> fx.Node:
        node = graph.call_function(by_size, (condition, yes, no))
        OWN_FIRST.put(node, own)
        return node

    for inner, outer in ((yes, no), (no, yes)):
        if not is_choice(inner) or outer not in inner.args[1:]:
            continue
        also, own = inner.args[0], bool(OWN_FIRST.of(inner))
        left = inner.args[1]
        if (left is outer) == (inner is yes):
            also = make(also, False, True, own)
            own = not own
        left = inner.args[2] if left is outer else left
        if inner is yes:  # both have to hold
            return make(make(condition, also, False, outcome), left, no, outcome and own)
        return make(make(condition, True, also, outcome), yes, left, outcome or own)
    return make(condition, yes, no, outcome)


def is_choice(value: Any) -> bool:
    """Whether a value is a choice between two ways."""
    return isinstance(value, fx.Node) and value.target is by_size


def is_joined(graph: fx.Graph) -> bool:
    """Whether a forward was traced both ways from a decision on sizes."""
    return any(is_choice(node) for node in graph.nodes)


def own_side(choice: fx.Node) -> Any:
    """What a choice is at the size of the example."""
    return choice.args[1] if OWN_FIRST.of(choice) else choice.args[2]


def settle(graph: fx.Graph) -> None:
    """Goes the way of the example everywhere, in a model that is fixed in image size."""
    for node in list(graph.nodes):
        if node.target is by_size:
            own = own_side(node)
            if isinstance(own, fx.Node):
                node.replace_all_uses_with(own)
            else:
                for user in list(node.users):
                    _put(user, node, own)
            graph.erase_node(node)


def _put(user: fx.Node, node: fx.Node, value: Any) -> None:
    """Writes a constant where a node was read."""
    user.args = fx.node.map_arg(user.args, lambda n: value if n is node else n)
    user.kwargs = fx.node.map_arg(user.kwargs, lambda n: value if n is node else n)
