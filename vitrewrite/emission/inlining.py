"""Small programs without state are written where they are called, not as classes of their own."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Sequence
from typing import Any

from torch import fx, nn

from ..tracing.nodes import operand
from ..tracing.notes import HINT, copied_without
from ..tracing.template import Template
from ..tracing.unit import Unit
from .access import children_at
from .effects import holds_tensors, is_nothing, module_has_effect
from .once import once

MAX_STEPS = 3
"""A longer program deserves a name."""


def inline_small_calls(graph: fx.Graph, units: Sequence[Unit]) -> None:
    """Replaces calls of trivial children by what they do, in the graph shared by `units`."""
    for node in list(graph.nodes):
        if node.op != "call_module":
            continue
        children = children_at(units, str(node.target))
        if all(is_nothing(child) for child in children):
            users = list(node.users)
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
            _take_items(graph, users)
        elif _same_trivial(children):
            _inline(graph, node, children[0])


def _take_items(graph: fx.Graph, users: Sequence[fx.Node]) -> None:
    """Writes `(a, b)[0]` as `a`."""
    for user in users:
        items = user.args[0] if user.target is operator.getitem else None
        if isinstance(items, (tuple, list)) and isinstance(user.args[1], int):
            item = items[user.args[1]]
            if isinstance(item, fx.Node):
                user.replace_all_uses_with(item)
                graph.erase_node(user)


def _same_trivial(children: Sequence[nn.Module]) -> bool:
    first = children[0]
    if not isinstance(first, Unit) or not all(isinstance(c, Unit) for c in children):
        return False
    if steps(first) > MAX_STEPS or not all(steps(c) <= MAX_STEPS for c in children):
        return False
    return len({program(c) for c in children}) == 1


@once
def program(module: nn.Module) -> Hashable:
    """Equal for modules that compute the same by programs that can be written inline."""
    if is_nothing(module) or not isinstance(module, Unit) or module.template is None:
        return None
    calls = (n for n in module.template.graph.nodes if n.op == "call_module")
    below = [program(module.get_submodule(str(n.target))) for n in calls]
    return module.template.signature(), *below


@once
def steps(module: nn.Module) -> int:
    """Operations in a program that could be written inline; too many for one that could not."""
    never = MAX_STEPS + 1
    if not isinstance(module, Unit) or module.template is None or module.template.training:
        return never
    if module.checkpointing:
        return never
    if holds_tensors(module):
        return never
    if module_has_effect(module):
        return never
    count = 0
    for node in module.template.graph.nodes:
        if node.op == "get_attr":
            return never
        if node.op == "call_module":
            child = module.get_submodule(str(node.target))
            count += 0 if is_nothing(child) else steps(child)
        elif node.op in ("call_function", "call_method"):
            count += 1
        elif node.op == "output" and not isinstance(node.args[0], fx.Node):
            return never
    return count


def _inline(graph: fx.Graph, call: fx.Node, unit: nn.Module) -> None:
    assert isinstance(unit, Unit)
    assert isinstance(unit.template, Template)
    values: dict[fx.Node, Any] = {}
    inputs = iter(call.args)
    with graph.inserting_before(call):
        for node in unit.template.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(inputs)
            elif node.op == "output":
                result, hint = values[operand(node)], HINT.get(call)
                if hint and isinstance(result, fx.Node) and result not in call.args:
                    HINT.put(result, hint)
                call.replace_all_uses_with(result)
            else:
                values[node] = graph.node_copy(node, lambda n: values[n])
                copied_without(node, values[node], HINT)
                if node.op == "call_module":
                    values[node].target = f"{call.target}.{node.target}"
    graph.erase_node(call)
    for node in list(graph.nodes):
        if node.op == "call_module" and str(node.target).startswith(f"{call.target}."):
            child = unit.get_submodule(str(node.target)[len(str(call.target)) + 1 :])
            if is_nothing(child):
                node.replace_all_uses_with(node.args[0])
                graph.erase_node(node)
            elif isinstance(child, Unit):
                _inline(graph, node, child)
