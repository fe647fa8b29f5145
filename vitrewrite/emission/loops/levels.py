"""Finds what is made alike of the items of tuples, such as the levels of a pyramid.

Lists of values that are made alike, wherever they are read, are walked against the flow in
lockstep. What is found is made by one loop over the tuples, side by side, that fills lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from .lockstep import Inner, Items, Lockstep, Loose, Strand, Turned, UnevenError, leaves, read_by

LEAST = 3  # turns; fewer are no shorter as a loop
Path = tuple[Any, ...]


@dataclass
class Seed:
    """A list in the arguments of a node, whose items are made alike."""

    reader: fx.Node
    path: Path
    count: int
    pattern: Any

    @property
    def columns(self) -> list[Strand]:
        """The columns that its items are made of directly."""
        return [leaf for leaf in leaves(self.pattern) if isinstance(leaf, Strand)]


@dataclass
class Group:
    """Columns that one loop makes, and the lists that it fills."""

    columns: list[Strand] = field(default_factory=list)
    seeds: list[Seed] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many turns."""
        return self.seeds[0].count

    @property
    def key(self) -> tuple[Any, ...]:
        """Tells it from others of a graph."""
        return tuple(sorted((s.reader.name, str(s.path)) for s in self.seeds))

    def reads(self) -> Iterator[Any]:
        """What the columns and lists read, columns that the loop makes included."""
        for column in self.columns:
            yield from read_by(column)
        for seed in self.seeds:
            yield from leaves(seed.pattern)

    def is_worthwhile(self) -> bool:
        """Whether more is made in the loop than is needed to say what it goes through."""
        reads = list(self.reads())
        loose = {leaf for leaf in reads if isinstance(leaf, Loose)}
        named = {c.children for c in self.columns if c.children and c.children.container is None}
        starts = {leaf.start for leaf in reads if isinstance(leaf, Turned)}
        varied = any(isinstance(leaf, (Items, Inner, Turned)) for leaf in reads)
        varied = varied or any(c.children for c in self.columns)
        some = len(self.columns) >= 2 * (len(loose) + len(named))
        return some and varied and len(starts) < 2


def groups(graph: fx.Graph) -> Iterator[Group]:
    """What can be made by loops before any other of them."""
    seeds: dict[int, list[Seed]] = {}
    found: dict[int, Lockstep] = {}
    for node in graph.nodes:
        if node.op != "call_method" or node.target not in _SHAPES:
            for seed in _seeds(node, (node.args, dict(node.kwargs)), (), found):
                seeds.setdefault(seed.count, []).append(seed)
    for count in sorted(seeds):
        yield from _first(graph, seeds[count])


_SHAPES = frozenset({"view", "reshape", "permute", "expand", "repeat", "size"})


def _seeds(reader: fx.Node, value: Any, path: Path, found: dict[int, Lockstep]) -> Iterator[Seed]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _seeds(reader, each, (*path, key), found)
    if not isinstance(value, (tuple, list)):
        return
    count = len(value)
    whole = len(path) > 1 and all(isinstance(v, (fx.Node, tuple, list)) for v in value)
    if whole and count >= LEAST:
        lockstep = found.setdefault(count, Lockstep())
        try:
            pattern = lockstep.pattern(value)
        except UnevenError:
            pattern = None
        if pattern is not None and not isinstance(pattern, (fx.Node, Items, Inner, Loose)):
            yield Seed(reader, path, count, pattern)
            return
    for key, each in enumerate(value):
        yield from _seeds(reader, each, (*path, key), found)


def _first(graph: fx.Graph, seeds: list[Seed]) -> Iterator[Group]:
    """The groups that read nothing which another loop makes."""
    seeds = [s for s in _staged(graph, seeds) if all(c.stage == 0 for c in s.columns)]
    group_of: dict[Strand, Group] = {}
    for column in _below([c for seed in seeds for c in seed.columns]):
        group_of.setdefault(column, Group([column]))
    for column in group_of:
        _join(group_of, [column, *read_by(column)])
    for seed in seeds:
        _join(group_of, seed.columns)
    for seed in seeds:
        if seed.columns:
            group_of[seed.columns[0]].seeds.append(seed)
        elif not any(isinstance(leaf, Loose) for leaf in leaves(seed.pattern)):
            yield Group([], [seed])
    yield from (g for g in {id(g): g for g in group_of.values()}.values() if g.seeds)


def _join(group_of: dict[Strand, Group], some: Iterable[Any]) -> None:
    """Has some columns be of one group."""
    held = {id(group_of[c]): group_of[c] for c in some if isinstance(c, Strand)}
    first, *others = [*held.values(), *([] if held else [Group()])]
    for other in others:
        first.columns += other.columns
        group_of.update(dict.fromkeys(other.columns, first))


def _below(columns: list[Strand]) -> list[Strand]:
    """Columns and all that they are made of."""
    found: dict[int, Strand] = {}
    stack = list(columns)
    while stack:
        column = stack.pop()
        if id(column) not in found:
            found[id(column)] = column
            stack += [leaf for leaf in read_by(column) if isinstance(leaf, Strand)]
    return list(found.values())


def _staged(graph: fx.Graph, seeds: list[Seed]) -> list[Seed]:
    """Tells which loop comes before which; without lists of what is made of one another."""
    while True:
        columns = _below([c for seed in seeds for c in seed.columns])
        inside = {node: c for c in columns for node in c.nodes}
        for column in columns:
            column.stage = 0
        for _ in range(len(columns) + 2):
            if not _raised(graph, columns, inside):
                _sink(columns, seeds, inside)
                return seeds
        wrong = {id(c) for c in columns if c.stage > len(columns) // 2}
        left = [s for s in seeds if not wrong & {id(c) for c in _below(s.columns)}]
        if len(left) == len(seeds):
            return []
        seeds = left


def _raised(graph: fx.Graph, columns: list[Strand], inside: dict[fx.Node, Strand]) -> bool:
    """Raises the stages of columns by what they read; whether there was one to raise."""
    reach: dict[fx.Node, int] = {}
    for node in graph.nodes:
        before = max((reach[o] for o in node.all_input_nodes), default=-1)
        reach[node] = max(before, inside[node].stage) if node in inside else before
    raised = False
    for column in columns:
        stages = [0]
        for leaf in read_by(column):
            if isinstance(leaf, Strand):
                stages.append(leaf.stage)
            elif isinstance(leaf, Loose):
                stages += [reach[n] + 1 for n in leaf.nodes]
            elif isinstance(leaf, (Items, Inner)):
                items = leaf if isinstance(leaf, Items) else leaf.items
                stages.append(reach[items.owner] + 1)
            elif isinstance(leaf, fx.Node):
                stages.append(reach[leaf] + 1)
        if max(stages) > column.stage:
            column.stage, raised = max(stages), True
    return raised


def _sink(columns: list[Strand], seeds: list[Seed], inside: dict[fx.Node, Strand]) -> None:
    """Has the loop make a column that first reads it, where no earlier one needs it."""
    readers: dict[Strand, list[Strand]] = {}
    for column in columns:
        for leaf in read_by(column):
            if isinstance(leaf, Strand):
                readers.setdefault(leaf, []).append(column)
    listed = {column for seed in seeds for column in seed.columns}
    order = {node: i for i, node in enumerate(columns[0].nodes[0].graph.nodes)} if columns else {}
    for column in sorted(columns, key=lambda c: -order[c.nodes[0]]):
        alone = any(user not in inside for node in column.nodes for user in node.users)
        if column not in listed and not alone and column in readers:
            column.stage = max(column.stage, min(c.stage for c in readers[column]))
