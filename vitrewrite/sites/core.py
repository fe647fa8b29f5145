"""The node of an attention that attends: `scaled_dot_product_attention`, and what it is given."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from ..editing.attended import is_boolean, scores_of, standing
from ..editing.editor import after
from ..tracing.notes import ORIGIN, VALUE
from ..tracing.operators import is_inplace

_OPERANDS = ("query", "key", "value", "attn_mask")


def operand_of(core: fx.Node, index: int) -> fx.Node:
    """Queries, keys or values."""
    value = core.args[index] if len(core.args) > index else core.kwargs.get(_OPERANDS[index])
    assert isinstance(value, fx.Node)
    return value


def bias_of(core: fx.Node) -> fx.Node | None:
    """What is added to the scores, or masks them."""
    value: Any = core.args[3] if len(core.args) > 3 else core.kwargs.get("attn_mask")
    return value if isinstance(value, fx.Node) else None


def set_operand(core: fx.Node, index: int, value: fx.Node) -> None:
    """Puts another value in an argument's place."""
    if len(core.args) > index:
        core.update_arg(index, value)
    else:
        core.update_kwarg(_OPERANDS[index], value)
    scores = standing(core, scores_of)
    if index == 1 and scores is not None:
        scores.update_arg(1, value)


def add_bias(core: fx.Node, bias: fx.Node) -> None:
    """Adds numbers to the scores besides what is added to them, or masks them, already."""
    old = bias_of(core)
    if old is not None:
        with after(core.graph, [old, bias]):
            if is_boolean(old):
                bias = core.graph.call_function(torch.where, (old, bias, -math.inf))
            else:
                bias = core.graph.call_function(operator.add, (old, bias))
    set_operand(core, 3, bias)


def settle(core: fx.Node, given: Sequence[fx.Node], results: Sequence[fx.Node]) -> None:
    """Moves a call behind what changes its arguments in place, as the attention reads them."""
    if not any(is_inplace(user.target) for node in given for user in node.users):
        return
    call = results[0] if results[0].op == "call_module" else results[0].args[0]
    assert isinstance(call, fx.Node)
    for node in (call, *(r for r in results if r is not call)):
        core.prepend(node)


def of_tokens(node: fx.Node) -> fx.Node:
    """The keys or values before passes added rows to them."""
    while node.target is operator.getitem:
        call, index = node.args
        if not (isinstance(call, fx.Node) and call.op == "call_module" and ORIGIN.on(call)):
            break
        inner = call.args[index] if isinstance(index, int) and index < len(call.args) else None
        if not isinstance(inner, fx.Node):
            break
        node = inner
    return node


def filled(bias: fx.Node, keys: fx.Node) -> fx.Node:
    """Numbers by key with zeros in front, for the tokens that joined since they were made."""
    graph = bias.graph
    with after(graph, [bias, keys]):
        length = graph.call_method("size", (keys, 2))
        known = graph.call_method("size", (bias, 3))
        missing = graph.call_function(operator.sub, (length, known))
        for node in (length, known, missing):
            VALUE.put(node, 1)
        return graph.call_function(F.pad, (bias, (missing, 0)))


def before_rows(bias: fx.Node) -> fx.Node:
    """A bias of scores before it was padded for rows that passes put beside keys."""
    while bias.target is F.pad and isinstance(bias.args[1], tuple) and len(bias.args[1]) == 2:
        source = bias.args[0]
        if not isinstance(source, fx.Node) or not all(isinstance(n, int) for n in bias.args[1]):
            break
        bias = source
    return bias
