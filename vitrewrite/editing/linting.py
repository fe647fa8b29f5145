"""What a legal graph is, checked after every clause."""

from __future__ import annotations

from torch import fx

from ..errors import RewriteError
from ..tracing.unit import Unit


def lint(graph: fx.Graph, unit: Unit, path: str) -> None:
    """Every name that a graph uses is there, and nodes stand in order.

    Raises:
        RewriteError: VR405, a bug of the pass that was applied last.
    """
    try:
        graph.lint()
        for node in graph.nodes:
            if node.op == "call_module":
                unit.get_submodule(str(node.target))
            if node.op == "get_attr":
                owner, _, name = str(node.target).rpartition(".")
                getattr(unit.get_submodule(owner), name)
    except (AttributeError, RuntimeError) as error:
        raise RewriteError(
            "VR405", f"the graph of '{path or 'the root'}' broke: {error}"
        ) from error
