"""Positions that an attention gives its patches by where they stand, when those are regrouped."""

from __future__ import annotations

from collections.abc import Iterator
from operator import getitem
from typing import NamedTuple

import torch
from torch import fx, nn

from ..editing.editor import after
from ..editing.slices import ahead, behind
from ..editing.value import Value, shape_of
from ..tracing.nodes import is_size
from ..tracing.notes import HINT, VALUE
from ..tracing.numbers import plain
from .attention import AttentionSite

_ADDS = frozenset({"add", "iadd", "add_"})
_COMBINES = frozenset({*_ADDS, "mul", "imul", "mul_", "multiply"})
_PIECES = frozenset({"chunk", "split"})
_PASSING = frozenset({"to", "float", "type_as"})


class PositionsOfPatches(nn.Module):
    """Rows of a table of positions, those of the patches that are left: as for attention, rank 4.

    The table has a row for each patch, or, behind `front` others, along an axis counted from the
    end; `kept` [batch, patches] says which. In training the table may differ between images.
    """

    inserted_by = "vitrewrite"
    made_of = (0,)  # `kept` only chooses of the table

    def __init__(self, axis: int, front: int = 0, rank: int = 4) -> None:
        super().__init__()
        self.axis, self.front, self.rank = axis, front, rank

    def forward(self, table: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """[batch, .., patches, ..], of the rank of what it is combined with."""
        if self.front:
            first = torch.arange(self.front, device=kept.device).expand(kept.shape[0], -1)
            kept = torch.cat([first, kept + self.front], dim=1)
        if table.dim() < self.rank:
            rows = table.movedim(self.axis, 0)[kept].movedim(1, self.axis)
            return rows[(slice(None), *(None,) * (self.rank - rows.dim()))]
        shape = [1] * table.dim()
        shape[0], shape[self.axis] = kept.shape
        return table.take_along_dim(kept.view(shape), dim=self.axis)


class _Table(NamedTuple):
    """A value with a row for each patch, and what it is combined with.

    Attributes:
        path: from the value that is given to the unit down to the one that is combined.
        axis: of the patches, counted from the end.
        rank: of what it is combined with.
        rows: how many, which are those of all tokens if they are more than patches.
    """

    path: tuple[fx.Node, ...]
    user: fx.Node
    axis: int
    rank: int
    rows: int


def has_positions(site: AttentionSite) -> bool:
    """Whether an attention combines what it makes of its tokens with something by patch."""
    template = site.editor.unit(site._unit).template
    return template is not None and any(_tables(site, template.graph))


def move(site: AttentionSite, kept: Value) -> None:
    """Has each patch take the positions that it had before tokens were regrouped.

    Args:
        site: an attention behind a regrouping.
        kept: [batch, patches], which patch of the model as it was that is.

    Raises:
        RewriteError: VR451 if it makes the positions anew, for as many tokens as there are.
    """
    graph, unit = site.editor.graph(site._unit), site._unit
    chosen = kept.read(site.editor, unit)
    made: dict[fx.Node, fx.Node] = {}
    for table in list(_tables(site, graph)):
        first = table.path[0]
        if _counts(site, first):
            raise site.clause.error(
                "VR451",
                f"{site.pass_name} changes the tokens, and '{site.role}' makes positions for as "
                "many as there are",
            )
        if first not in made:
            made[first] = _chosen(site, table, chosen)
        child = table.path[1] if len(table.path) > 1 else table.user
        child.replace_input_with(first, made[first])


def _chosen(site: AttentionSite, table: _Table, kept: fx.Node) -> fx.Node:
    """The rows of the patches that are left; what counts the rows counts those."""
    first, unit, stream = table.path[0], site._unit, site.context.stream
    front = stream.start.prefix if table.rows != stream.start.patches else 0
    module = PositionsOfPatches(table.axis, front, table.rank)
    hint = str(HINT.get(first) or "positions")
    sizes = [u for u in first.users if is_size(u)]
    made = site.help(module, unit, (first, kept), f"{site._stem}_positions", hint)
    for size in sizes:
        if size.args[1] in (table.axis, len(shape_of(first)) + table.axis):
            with after(made.graph, [made]):
                count = made.graph.call_method("size", (made, table.axis))
            VALUE.put(count, VALUE.of(size))
            size.replace_all_uses_with(count)
    return made


def _calls(site: AttentionSite, graph: fx.Graph) -> list[fx.Node]:
    """The layers that make its queries and keys, as far as they are in its own unit."""
    found = (s for s in (site.attention.q, site.attention.k) if s is not None)
    places = {site.editor.where(layer.call) for layer in found}
    names = {place.node for place in places if place.unit == site._unit}
    return [node for node in graph.nodes if node.name in names]


def _tables(site: AttentionSite, graph: fx.Graph) -> Iterator[_Table]:
    """What is combined with queries and keys along the axis of their tokens.

    It is made of neither, nor of what they are made of; a bias of scores, which has the tokens on
    two axes, is none.
    """
    start, calls = site.context.stream.start, _calls(site, graph)
    counts = {n for n in (start.patches, (start.patches or 0) + start.prefix) if n and n > 1}
    made = behind(calls)
    tokens = {n for n in ahead(calls) if n.op == "placeholder"}
    for user in graph.nodes:
        name = getattr(user.target, "__name__", user.target)
        if user not in made or name not in _COMBINES or len(user.all_input_nodes) != 2:
            continue
        for table, other in (user.all_input_nodes, user.all_input_nodes[::-1]):
            axis = _axis(shape_of(table), shape_of(other), counts)
            square = shape_of(table)[-2:] == shape_of(table)[-1:] * 2
            if axis is None or table in made or other not in made or (name in _ADDS and square):
                continue
            path = _path(table)
            if not tokens & _made_of(path[0]):
                rows = shape_of(table)[axis]
                yield _Table(path, user, axis, len(shape_of(other)), rows)


def _made_of(node: fx.Node) -> set[fx.Node]:
    """The values that a node is made of; what only their lengths or dtype are read of is left out.

    So positions that are made for a number of tokens are not made of the tokens.
    """
    found, queue = {node}, [node]
    while queue:
        fresh = set(queue.pop().all_input_nodes) - found
        found |= fresh
        queue += [n for n in fresh if not is_size(n) and n.target is not getattr]
    return found


def _counts(site: AttentionSite, table: fx.Node) -> bool:
    """Whether a table is made for as many tokens as there are where the attention runs."""
    calls = _calls(site, table.graph)
    tokens, start = ahead(calls) | behind(calls), site.context.stream.start
    lengths = {start.patches, (start.patches or 0) + start.prefix}
    sizes = (n for n in _made_of(table) if is_size(n) and n.args[0] in tokens)
    return any(plain(VALUE.get(n)) in lengths for n in sizes)


def _axis(table: tuple[int, ...], other: tuple[int, ...], counts: set[int]) -> int | None:
    """The axis of the tokens that two shapes have in common, counted from the end."""
    rank = min(len(table), len(other))
    found = [a for a in range(-2, -rank - 1, -1) if table[a] == other[a] and table[a] in counts]
    return found[0] if found else None


def _path(table: fx.Node) -> tuple[fx.Node, ...]:
    """From what a table is a piece of, or a cast of, down to it; rows stay where they are."""
    path = [table]
    while (source := _source(path[0])) is not None:
        path = [*source, *path]
    return tuple(path)


def _source(node: fx.Node) -> tuple[fx.Node, ...] | None:
    """What a value is a piece of along its last axis, with the steps on the way; or a cast of."""
    if node.target is getitem and isinstance(node.args[1], int):
        cut = node.args[0]
        if isinstance(cut, fx.Node) and cut.target in _PIECES and cut.op == "call_method":
            axis = cut.args[2] if len(cut.args) > 2 else cut.kwargs.get("dim")
            source = cut.args[0]
            return (source, cut) if axis == -1 and isinstance(source, fx.Node) else None
    if node.op == "call_method" and node.target in _PASSING:
        source = node.args[0]
        return (source,) if isinstance(source, fx.Node) else None
    return None
