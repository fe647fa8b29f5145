"""Graphs as plain values, for pickling: `torch.fx` graphs themselves cannot be pickled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from .notes import VALUE
from .numbers import Tracked, plain


@dataclass(frozen=True)
class Ref:
    """Stands for the node of a number."""

    number: int


Row = tuple[str, str, Any, Any, Any, dict[str, Any]]
"""A node: operation, name, target, arguments, keywords, what is known of it."""


def packed(graph: fx.Graph) -> list[Row]:
    """The nodes of a graph in order."""
    refs = {node: Ref(i) for i, node in enumerate(graph.nodes)}

    def value(item: Any) -> Any:
        stand_in: Any = refs.__getitem__
        return fx.node.map_arg(item, stand_in)

    return [
        (n.op, n.name, n.target, value(n.args), value(dict(n.kwargs)), _known(n))
        for n in graph.nodes
    ]


def _known(node: fx.Node) -> dict[str, Any]:
    """A node's meta, its value without what the tracer knew of it."""
    known = dict(node.meta)
    value = VALUE.get(node)
    if isinstance(value, Tracked):
        known[VALUE.name] = plain(value)
    elif isinstance(value, torch.Tensor):
        known[VALUE.name] = torch.empty_like(value, device="meta")
    return known


def unpacked(rows: list[Row]) -> fx.Graph:
    """The graph of its nodes; they keep their names."""
    graph = fx.Graph()
    nodes: list[fx.Node] = []

    def known_node(item: Any) -> Any:
        return nodes[item.number] if isinstance(item, Ref) else item

    def value(item: Any) -> Any:
        return fx.node.map_aggregate(item, known_node)

    for op, name, target, args, kwargs, known in rows:
        node = graph.create_node(op, target, value(args), value(kwargs), name)
        node.meta.update(known)
        nodes.append(node)
    return graph
