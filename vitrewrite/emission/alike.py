"""What makes two nodes the same but for what they read, or which child of a list they call."""

from __future__ import annotations

from torch import fx

from ..tracing.nodes import nodes_of
from ..tracing.notes import ARITY, PLACE


def numbered_call(node: fx.Node) -> tuple[str, int] | None:
    """The list that holds the child which a node calls, and its number there; see `written`."""
    return PLACE.get(node) if node.args else None


def operands(node: fx.Node) -> list[fx.Node]:
    """The nodes in the arguments of a node, repeated ones too."""
    return nodes_of((node.args, dict(node.kwargs)))


def shape(node: fx.Node) -> str:
    """Equal for nodes that differ in their operands, or the number of the child that they call."""
    held = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: "<node>")
    container, _ = numbered_call(node) or (node.target, 0)
    # Some children may return a tuple, others one value.
    return repr((node.op, container, held, ARITY.get(node)))
