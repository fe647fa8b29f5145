"""The other form of attention: softmax written out, for those who need the probabilities."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from ..tracing.notes import VALUE, copied
from ..tracing.numbers import plain
from .values import concrete


def write_out(core: fx.Node) -> fx.Node:
    """Rewrites a call of SDPA as softmax(scale * q @ k.T + bias) @ v.

    Returns:
        the product with the values, whose first argument is the softmax.
    """
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")
    given: dict[str, Any] = {**dict(zip(names, core.args, strict=False)), **core.kwargs}
    query, key, bias = given["query"], given["key"], given.get("attn_mask")
    scale, graph = given.get("scale"), core.graph
    if scale is None:
        scale = VALUE.of(query).shape[-1] ** -0.5
    with graph.inserting_before(core):
        scaled = emit(graph, operator.mul, query, scale)
        scores = emit(graph, operator.matmul, scaled, emit(graph, "transpose", key, -2, -1))
        if isinstance(bias, fx.Node) and VALUE.of(bias).dtype == torch.bool:
            hidden = emit(graph, operator.invert, bias)
            scores = emit(graph, "masked_fill", scores, hidden, -math.inf)
        elif bias is not None:
            scores = emit(graph, operator.add, scores, bias)
        weights = emit(graph, "softmax", scores, -1)
        if given.get("dropout_p"):
            weights = emit(graph, functional.dropout, weights, given["dropout_p"])
        result = emit(graph, operator.matmul, weights, given["value"])
    copied(core, result)
    core.replace_all_uses_with(result)
    graph.erase_node(core)
    return result


def emit(graph: fx.Graph, target: Any, *args: Any) -> fx.Node:
    """Adds a node, with its value in the primary trace."""
    values = concrete(args, _on_meta)
    if isinstance(target, str):
        node = graph.call_method(target, args)
        VALUE.put(node, getattr(values[0], target)(*values[1:]))
    else:
        node = graph.call_function(target, args)
        VALUE.put(node, target(*values))
    return node


def _on_meta(node: fx.Node) -> Any:
    """The value of a node without its data: parameters are on a device of their own."""
    value = VALUE.get(node)
    return value.detach().to("meta") if isinstance(value, torch.Tensor) else plain(value)
