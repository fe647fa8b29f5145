"""The queries of some rows alone, where a layer makes queries, keys and values at once."""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from ..tracing.notes import HINT, VALUE, copied_without
from ..tracing.numbers import plain
from .slices import ahead

_VIEWS = {
    "reshape", "view", "permute", "transpose", "unflatten", "unbind", "chunk", "split",
    operator.getitem,
}  # fmt: skip


@dataclass(frozen=True)
class FusedLayer:
    """A layer that makes queries, keys and values at once.

    Attributes:
        call: its call.
        rows: the half-open range of its rows that make queries, or what else is made of it.
        bias: whether it has one.
    """

    call: fx.Node
    rows: tuple[int, int]
    heads: int
    bias: bool

    def queries(self, source: fx.Node, needed: Collection[fx.Node]) -> dict[fx.Node, fx.Node]:
        """The queries of other rows, from some rows of the weight.

        Args:
            source: the rows.
            needed: what is made of them on the way to what the block yields.

        Returns:
            By node what stands for it, up to the queries; empty if something stands at the layer,
            or the queries lie there in another order.
        """
        chain = self._chain(needed)
        if not chain:
            return {}
        graph, name, (first, last) = self.call.graph, str(self.call.target), self.rows
        with graph.inserting_after(self.call):
            anchor = graph.call_function(operator.pos, (source,))
        with graph.inserting_before(anchor):
            names = ["weight", "bias"] if self.bias else ["weight"]
            whole = [graph.get_attr(f"{name}.{each}") for each in names]
            rows = slice(first or None, last)
            own = [graph.call_function(operator.getitem, (each, rows)) for each in whole]
            made = graph.call_function(F.linear, (source, *own))
            width = (last - first) // self.heads
            split = graph.call_method("unflatten", (made, -1, (self.heads, width)))
            queries = graph.call_method("transpose", (split, 1, 2))
        graph.erase_node(anchor)
        HINT.put(queries, "asking")
        return dict.fromkeys((self.call, *chain), queries)

    def _chain(self, needed: Collection[fx.Node]) -> list[fx.Node]:
        """The views that are taken of what the layer yields, up to the queries."""
        shape = VALUE.of(self.call).shape
        first, last = self.rows
        value: Any = torch.arange(shape.numel(), device="cpu").view(shape)
        wanted = value[..., first:last].unflatten(-1, (self.heads, -1)).transpose(1, 2)
        chain, node = list[fx.Node](), self.call
        while True:
            users = [n for n in node.users if n in needed]
            if len(users) != 1 or users[0].target not in _VIEWS or users[0].args[0] is not node:
                return []
            node = users[0]
            args = fx.node.map_arg(node.args[1:], lambda n: plain(VALUE.of(n)))
            target: Any = node.target
            kwargs = dict(node.kwargs)
            run = getattr(torch.Tensor, target) if isinstance(target, str) else target
            value = run(value, *args, **kwargs)
            chain.append(node)
            if isinstance(value, torch.Tensor) and value.numel() == wanted.numel():
                return chain if torch.equal(value, wanted) else []


def make_apart(layers: Sequence[FusedLayer | None], ends: Sequence[fx.Node]) -> dict[str, str]:
    """Makes queries, keys and values each from their own rows of the weight.

    A view of what one layer yields keeps all of it alive as long as it is kept itself.

    Args:
        layers: the layer with the rows of each.
        ends: queries, keys and values as they are asked.

    Returns:
        The names of the nodes by those that they stand for; empty if one is not made by views.
    """
    chains = [
        each._chain(ahead([end])) if each else [] for each, end in zip(layers, ends, strict=True)
    ]
    if not all(chains):
        return {}
    found = {}
    parts = list(zip(layers, ends, chains, ("q", "k", "v"), strict=True))
    for layer, end, chain, name in reversed(parts):  # each goes right behind the layer
        assert layer is not None
        old = chain[-1]
        (source,) = layer.call.all_input_nodes
        new = layer.queries(source, ahead([end]))[old]
        copied_without(old, new, HINT)
        HINT.put(new, name)
        old.replace_all_uses_with(new)
        found[old.name] = new.name
    return found
