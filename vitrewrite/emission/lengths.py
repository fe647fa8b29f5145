"""Programs that call the layers of a list one by one: of lists of several lengths, one class."""

from __future__ import annotations

import operator

from torch import fx

from ..tracing.template import Template
from ..tracing.unit import Unit
from .access import child_of, is_numbered

LEAST = 3
"""Of fewer layers, no loop shows."""


def is_longer(large: Template, small: Template, having: Unit, without: Unit) -> bool:
    """Whether two programs do nothing but call all layers of one list, the first one more of them.

    What goes from layer to layer is left to the proof of what is printed.
    """
    names = {_list(g, u) for t, u in ((large, having), (small, without)) for g in t.graphs}
    if len(names) != 1 or None in names or large.training or small.training:
        return False
    (name,) = names
    lengths = [len(child_of(unit, str(name))._modules) for unit in (having, without)]
    inputs = [sum(n.op == "placeholder" for n in t.graph.nodes) for t in (large, small)]
    return lengths[0] > lengths[1] and lengths[0] >= LEAST and inputs[0] == inputs[1]


def _list(graph: fx.Graph, unit: Unit) -> str | None:
    """The list of which a program calls all layers, if it does nothing else."""
    called = [str(n.target).rpartition(".") for n in graph.nodes if n.op == "call_module"]
    names = {name for name, _, _ in called}
    if len(names) != 1 or "" in names or not _only_calls(graph):
        return None
    (name,) = names
    owner = child_of(unit, name)
    plain = is_numbered(owner) and [number for _, _, number in called] == list(owner._modules)
    others = [k for k, m in unit._modules.items() if m is not None and k != name]
    return name if plain and not others and not unit._parameters and not unit._buffers else None


def _only_calls(graph: fx.Graph) -> bool:
    known = ("placeholder", "call_module", "output")
    return all(n.op in known or n.target is operator.getitem for n in graph.nodes)
