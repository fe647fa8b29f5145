"""The program of `forward_head(x, pre_logits=True)`: `forward_head(x)` up to its layers."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from ..tracing.notes import copied
from ..tracing.pre_logits import HOW, WHOLE
from ..tracing.template import copy_graph, eliminate_dead_code
from ..tracing.unit import Unit


def before_logits(half: fx.Graph, root: Unit, told: Sequence[str]) -> fx.Graph | None:
    """A program that yields what the layers read, or None where there is none.

    Args:
        half: the program of `forward_head`.
        root: the model.
        told: how what is wanted is made of what they read, and the paths of the layers.
    """
    how, *layers = told
    graph = copy_graph(half)
    if how == WHOLE:
        return graph
    while (call := _around(graph, root, layers)) is not None:
        child = root.get_submodule(str(call.target))
        if not isinstance(child, Unit) or child.template is None or child.template.training:
            return None
        _write_out(graph, call, child.template.graph)
    calls = [n for n in graph.nodes if n.op == "call_module"]
    inputs = [n.args[0] for layer in layers for n in calls if n.target == layer]
    if len(inputs) != len(layers) or how not in HOW:
        return None
    output = graph.output_node()
    with graph.inserting_before(output):
        output.args = (_made(graph, how, inputs),)
    eliminate_dead_code(graph)
    return graph


def _around(graph: fx.Graph, root: Unit, layers: Sequence[str]) -> fx.Node | None:
    """A call of a unit that one of the layers lies in."""
    calls: list[fx.Node] = [n for n in graph.nodes if n.op == "call_module"]
    for node in calls:
        holds = any(path.startswith(f"{node.target}.") for path in layers)
        if holds and isinstance(root.get_submodule(str(node.target)), Unit):
            return node
    return None


def _write_out(graph: fx.Graph, call: fx.Node, program: fx.Graph) -> None:
    """Writes the program of a unit in the place of a call of it."""
    values: dict[fx.Node, Any] = {}
    given = iter(call.args)
    for node in program.nodes:
        if node.op == "placeholder":
            values[node] = next(given)
        elif node.op != "output":
            with graph.inserting_before(call):
                new = values[node] = graph.node_copy(node, values.__getitem__)
            copied(node, new)
            if node.op == "call_module" or (node.op == "get_attr" and node.target != "training"):
                new.target = f"{call.target}.{node.target}"
    returned: Any = fx.node.map_arg(program.output_node().args[0], values.__getitem__)
    for item in [call] if isinstance(returned, fx.Node) else list(call.users):
        item.replace_all_uses_with(returned if item is call else returned[item.args[1]])
        if item is not call:
            graph.erase_node(item)
    graph.erase_node(call)


def _made(graph: fx.Graph, how: str, inputs: Sequence[Any]) -> Any:
    """The node of what is wanted."""
    if how == "input":
        return inputs[0]
    if how == "row":
        return graph.call_function(torch.cat, (list(inputs),), {"dim": 1})
    total = graph.call_function(operator.add, (inputs[0], inputs[1]))
    return graph.call_function(operator.truediv, (total, 2))
