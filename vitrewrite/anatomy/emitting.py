"""Nodes that are put into a graph with the value that they have in the primary trace."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..tracing.notes import VALUE
from ..tracing.numbers import plain
from .values import concrete


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
