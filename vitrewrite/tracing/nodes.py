"""Typed access to what a node of a graph holds; `torch.fx` declares a union of twenty types."""

from __future__ import annotations

import functools
import re
from typing import Any, TypeGuard

from torch import fx

from .notes import ENTRY, RESULT


def add(
    graph: fx.Graph, op: str, target: Any, args: tuple[Any, ...], kwargs: Any = None
) -> fx.Node:
    """A new node where the graph inserts: what `create_node` makes, in a third of the time."""
    node = graph.create_node(op, target, name=_name(target))
    node.args = args
    if kwargs:
        node.kwargs = kwargs
    return node


@functools.lru_cache(maxsize=1024)
def _name(target: Any) -> str:
    """How `torch.fx` names what a target gives."""
    name: str = target if isinstance(target, str) else target.__name__
    if name.startswith("__") and name.endswith("__"):
        name = name[2:-2]
    return re.sub(r"(?<=[a-z])([A-Z])", r"_\1", name).lower()


def arg(node: fx.Node, index: int) -> Any:
    """A positional argument: a node, a constant, or a structure of them."""
    return node.args[index]


def operand(node: fx.Node, index: int = 0) -> fx.Node:
    """A positional argument that is known to be a node."""
    found = node.args[index]
    assert isinstance(found, fx.Node)
    return found


def nodes_of(value: Any) -> list[fx.Node]:
    """The nodes in an argument or a structure of them, repeated ones too."""
    found: list[fx.Node] = []
    fx.node.map_arg(value, found.append)
    return found


def after_inputs(node: fx.Node) -> fx.Node:
    """`node`, or the last placeholder: nothing may stand between placeholders."""
    while node.op == "placeholder" and node.next.op == "placeholder":
        node = node.next
    return node


def attribute_of(node: fx.Node, what: str) -> fx.Node:
    """The node that reads a dtype or device off a tensor."""
    for user in node.users:
        if user.target is getattr and user.args == (node, what):
            return user
    # Right after the tensor, so that every later use may share it.
    with node.graph.inserting_after(after_inputs(node)):
        return add(node.graph, "call_function", getattr, (node, what))


def is_size(value: Any) -> TypeGuard[fx.Node]:
    """Whether the value is a node that reads one size of a tensor."""
    return (
        isinstance(value, fx.Node)
        and value.op == "call_method"
        and value.target == "size"
        and len(value.args) == 2
    )


def marks_of(node: fx.Node) -> tuple[Any, Any]:
    """The entry that a node belongs to, and its place in what another returns (see `cutting`)."""
    return ENTRY.get(node), RESULT.get(node)


def take_entry(node: fx.Node, replaced: fx.Node) -> None:
    """Has a node belong to the entry that what it stands for belonged to."""
    if entry := ENTRY.get(replaced):
        ENTRY.put(node, entry)
