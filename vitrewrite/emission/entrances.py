"""Entries that clauses ask for: a program of the root with one thing changed, as a method.

In an entry the modules that ask for it are told so, and what is appended to it is yielded beside
the output. They say so by their attributes `enters` and `entry`; see `sites.entering`.
"""

from __future__ import annotations

from torch import fx, nn

from ..tracing.template import copy_graph
from ..tracing.unit import Unit


def entrances(root: nn.Module) -> tuple[str, ...]:
    """The names of the entries of a model, in order."""
    found = (m.entry for m in root._modules.values() if m is not None and hasattr(m, "enters"))
    return tuple(sorted({str(name) for name in found}))


def entered(graph: fx.Graph, root: Unit, entry: str) -> fx.Graph:
    """The program of an entry.

    Args:
        graph: that of the forward, which stays as it is.
        root: the model.
        entry: the name.
    """
    made = copy_graph(graph)
    more: list[fx.Node] = []
    for node in made.nodes:
        module = root._modules.get(str(node.target)) if node.op == "call_module" else None
        if getattr(module, "entry", None) != entry:
            continue
        if getattr(module, "enters", "") == "asked":
            node.args = (*node.args, True)
        else:
            more += node.all_input_nodes[1:]
    if more:
        output = made.output_node()
        output.args = ((output.args[0], tuple(more)),)
    return made
