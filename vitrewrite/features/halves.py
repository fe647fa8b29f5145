"""Modules that say what they read before they compute: two steps of a program in place of one.

A module with `condense(*inputs)` and `finish(*condensed)` computes `finish(*condense(*inputs))`.
Condensing reads no tensor of the module's own, draws nothing, and yields less than it reads, such
as averages over tokens; so it can belong to the frozen part, and what is kept is small.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from ..tracing.notes import ORIGIN, copied
from ..tracing.unit import run_node


@dataclass(frozen=True)
class Half:
    """A call of one of the two methods of a module, as the target of a node."""

    path: str
    method: str

    def __call__(self, *args: Any) -> Any:
        """Never done: `run_step` knows the module."""
        raise AssertionError(self)

    @property
    def __name__(self) -> str:
        return self.method


def run_step(node: fx.Node, root: nn.Module, values: dict[fx.Node, Any]) -> Any:
    """The value of a node that is neither an input nor the output of a flat program."""
    if isinstance(node.target, Half):
        module = root.get_submodule(node.target.path)
        return getattr(module, node.target.method)(*fx.node.map_arg(node.args, lambda n: values[n]))
    return run_node(node, root, values)


def split_halves(graph: fx.Graph, root: nn.Module) -> None:
    """Puts two steps in place of each call of a module that has them, item by item."""
    for node in list(graph.nodes):
        if node.op != "call_module" or node.kwargs:
            continue
        path = str(node.target)
        if not hasattr(root.get_submodule(path), "condense"):
            continue
        with graph.inserting_before(node):
            condensed = graph.call_function(Half(path, "condense"), node.args)
            items = [
                graph.call_function(operator.getitem, (condensed, i))
                for i, _ in enumerate(node.args)
            ]
            finished = graph.call_function(Half(path, "finish"), tuple(items))
        for new in (condensed, *items):
            copied(node, new, ORIGIN)
        copied(node, finished)
        node.replace_all_uses_with(finished)
        graph.erase_node(node)
