"""Products of what a layer reads with a factor that another module owns."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from ..tracing.notes import HINT, ORIGIN
from .editor import Editor, after


def project(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """x [..., m d] times factor [r, d], chunk by chunk: [..., m r]."""
    width = factor.shape[1]
    if x.shape[-1] == width:
        return F.linear(x, factor)
    return F.linear(x.view(*x.shape[:-1], -1, width), factor).flatten(-2)


def projected(
    editor: Editor, unit: str, x: fx.Node, factor: fx.Node, chunks: int, width: int, origin: str
) -> fx.Node:
    """The node that holds `project(x, factor)` in the graph of a unit, made once for all readers.

    Args:
        editor: of the model.
        unit: path of the unit.
        x: a node of its graph, [..., chunks * width].
        factor: a node of its graph, [r, width].
        chunks: how many pieces of x are projected, each by itself.
        width: of a piece.
        origin: the comment above.
    """
    graph = editor.graph(unit)
    if chunks > 1:
        x = _called(graph, "call_method", "unflatten", (x, -1, (chunks, width)))
    x = _called(graph, "call_function", F.linear, (x, factor))
    if chunks > 1:
        x = _called(graph, "call_method", "flatten", (x, -2))
    HINT.put(x, "code")
    ORIGIN.put(x, origin)
    return x


def _called(graph: fx.Graph, op: str, target: Any, args: tuple[Any, ...]) -> fx.Node:
    """A node that calls a function or method, the one that there is or a new one."""
    users: list[fx.Node] = list(args[0].users)
    for user in users:
        if (user.op, user.target, user.args) == (op, target, args):
            return user
    with after(graph, [a for a in args if isinstance(a, fx.Node)]):
        made: fx.Node = graph.create_node(op, target, args)
    return made
