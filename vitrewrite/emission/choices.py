"""Choices by size that are printed as `if ...: ... else: ...`, and what only one way computes."""

from __future__ import annotations

import operator

import torch
from torch import fx

from ..tracing.notes import CHANGE, EFFECT, VALUE
from ..tracing.operators import is_impure, is_inplace
from ..tracing.sizes import by_size
from .loops.rolls import Roll
from .loops.sweeps import Sweep

Block = tuple[fx.Node, bool]
"""A choice, and whether it is its first way."""


def is_choice(node: fx.Node) -> bool:
    """Whether the node is printed as a statement with two ways."""
    if node.target is not by_size:
        return False
    return isinstance(VALUE.get(node), torch.Tensor) or is_by_presence(node)


def blocks(graph: fx.Graph) -> dict[fx.Node, Block]:
    """For every node that only one way of a choice needs, that way."""
    found: dict[fx.Node, Block] = {}
    if not any(is_choice(node) for node in graph.nodes):
        return found
    order = {node: i for i, node in enumerate(graph.nodes)}
    changes = [i for node, i in order.items() if is_inplace(node.target)]

    def take(value: fx.Node, block: Block) -> None:
        between = any(order[value] < i < order[block[0]] for i in changes)
        if not between and _only_for(value, block, found):
            found[value] = block

    for node in reversed(graph.nodes):
        if is_choice(node):
            ways = (v for v in node.args[1:] if isinstance(v, fx.Node))
            for value in ways:
                take(value, (node, value is node.args[1]))
        elif node in found:
            for read in node.all_input_nodes:
                take(read, found[node])
    return found


def is_by_presence(choice: fx.Node) -> bool:
    """Whether a choice depends on what a module has or is given."""
    condition = choice.args[0]
    return isinstance(condition, fx.Node) and condition.target is operator.is_not


def _only_for(value: fx.Node, block: Block, found: dict[fx.Node, Block]) -> bool:
    """Whether a value may be put into a block: nothing outside of it reads the value."""
    choice, way = block
    rolled = isinstance(value.target, (Roll, Sweep))
    free = value.op in ("call_function", "call_method") and not rolled
    if value.op == "call_module":  # some modules of the class do without
        free = is_by_presence(choice) and not EFFECT.get(value) and not CHANGE.get(value)
    if not free or is_impure(value):
        return False
    own, others = choice.args[1 if way else 2], (choice.args[0], choice.args[2 if way else 1])
    for user in value.users:
        read = user is choice and own is value and not any(value is o for o in others)
        if not read and found.get(user) != block:
            return False
    return True
