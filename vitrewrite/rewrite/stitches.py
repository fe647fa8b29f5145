"""The ways through several models: what each costs, as a graph, and one as a model of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..editing.extracting import extracted
from ..editing.measure import BrokenError, Propagation
from ..errors import RewriteError
from ..text import giga, table
from ..tracing.about import about, is_root
from ..tracing.paths import STITCHES, Between, Way, Ways, told

if TYPE_CHECKING:
    import networkx as nx


@dataclass(frozen=True)
class Stitch:
    """One way through the models, and what it costs.

    Attributes:
        number: what it is called by.
        macs: of one image.
        params: of all that runs.
        macs_lowered: with updates folded into the weights, as it is taken out.
    """

    number: int
    path: Way
    macs: int
    params: int
    macs_lowered: int

    @property
    def name(self) -> str:
        """The models that it runs in words: `base`, or `small-base`."""
        path = self.path
        if path.layer is None:
            return path.front
        middle = f"-{path.between.model}" if path.between is not None else ""
        return f"{path.front}{middle}-{path.end}"

    def to_json(self) -> dict[str, Any]:
        """It as data."""
        front, stop, layer, end, start, *_ = self.path.row
        mid = self.path.between
        more = {} if mid is None else {"between": dataclasses.asdict(mid)}
        return {
            "number": self.number, "front": front, "front_blocks": stop, "layer": layer,
            "end": end, "first_end_block": start, "macs": self.macs,
            "macs_lowered": self.macs_lowered, "params": self.params, **more,
        }  # fmt: skip


@dataclass(frozen=True)
class StitchSpace:
    """All ways through the models of a tree.

    Attributes:
        stitches: by number.
        paths: as the tree knows them.
    """

    stitches: tuple[Stitch, ...]
    paths: Ways = field(repr=False)

    @property
    def graph(self) -> nx.DiGraph[tuple[str, int]]:
        """Points between pieces as nodes, `(base, pieces before it)`; pieces and layers as edges.

        An edge has `module`, the path of what runs, and where it is a layer its number, `layer`; a
        node has `enters` or `leaves` where paths begin or end. Every stitch is a path of it.
        """
        import networkx as nx

        graph: nx.DiGraph[tuple[str, int]] = nx.DiGraph()
        for base, pieces in self.paths.pieces.items():
            graph.add_node((base, 0), enters=True)
            graph.add_node((base, len(pieces)), leaves=True)
            for i, piece in enumerate(pieces):
                graph.add_edge((base, i), (base, i + 1), module=f"{base}.{piece}")
        for stitch in self.stitches:
            path = stitch.path
            if path.layer is not None and path.between is None:
                ends = (path.front, path.stop), (path.end, path.start)
                module = f"{STITCHES}.{path.layer}"
                graph.add_edge(*ends, module=module, layer=path.layer, stitch=stitch.number)
        return graph

    @property
    def macs(self) -> tuple[int, int]:
        """The least and the most that a stitch costs."""
        costs = [stitch.macs for stitch in self.stitches]
        return min(costs), max(costs)

    def to_json(self) -> list[dict[str, Any]]:
        """All as data."""
        return [stitch.to_json() for stitch in self.stitches]

    def lines(self) -> Iterator[str]:
        """A line for what there is of each two models: how many, and what they cost."""
        groups: dict[str, list[Stitch]] = {}
        for stitch in self.stitches:
            groups.setdefault(stitch.name, []).append(stitch)
        folds = any(stitch.macs != stitch.macs_lowered for stitch in self.stitches)
        rows = []
        for name, found in groups.items():
            numbers = f"{found[0].number}" + (f"..{found[-1].number}" if len(found) > 1 else "")
            cost = _range([stitch.macs for stitch in found])
            lowered = _range([stitch.macs_lowered for stitch in found])
            rows.append((numbers, name, cost, *([f"lowered {lowered}"] if folds else [])))
        return (f"stitch      {line}" for line in table(rows))


def _range(costs: Sequence[int]) -> str:
    """The least and the most of some costs."""
    low, high = giga(min(costs)), giga(max(costs))
    return low if low == high else f"{low} to {high}"


class OneStitch(nn.Module):
    """A stitch as a forward, which can be called with other parameters."""

    def __init__(self, model: nn.Module, number: int) -> None:
        super().__init__()
        self.model, self.number = model, number

    def forward(self, images: torch.Tensor) -> Any:
        """The output of the stitch."""
        return self.model.stitch(images, self.number)  # type: ignore[operator]


def space_of(
    root: nn.Module,
    example: tuple[torch.Tensor, ...],
    run: Propagation,
    lowered: nn.Module,
    run_lowered: Propagation,
) -> StitchSpace | None:
    """All ways through the models of a tree with their costs; None if it has one model.

    Args:
        root: the tree, on meta.
        example: what it is called with, on meta.
        run: a run of it.
        lowered: what it lowers to, on meta.
        run_lowered: a run of that.
    """
    paths = about(root).paths if is_root(root) else None
    if paths is None:
        return None
    counter = folded = _Counter(root, example, run, paths)
    if lowered is not root:
        folded = _Counter(lowered, example, run_lowered, paths)
    stitches = (
        Stitch(i, path, *counter.of(i), folded.of(i)[0]) for i, path in enumerate(paths.table)
    )
    return StitchSpace(tuple(stitches), paths)


class _Counter:
    """Counts paths: of those that differ in their pieces only the first is run."""

    def __init__(
        self, root: nn.Module, example: tuple[torch.Tensor, ...], run: Propagation, paths: Ways
    ) -> None:
        self.root, self.example, self.run, self.paths = root, example, run, paths
        self.around: dict[Hashable, tuple[int, int]] = {}  # without the pieces
        self.pieces: dict[str, tuple[int, int]] = {}

    def of(self, number: int) -> tuple[int, int]:
        """Multiply-accumulates and parameters of a path."""
        path = self.paths.table[number]
        between = (p for p in self.paths.modules(path) if not p.startswith(f"{STITCHES}."))
        pieces = [self._piece(piece) for piece in between]
        inside = sum(macs for macs, _ in pieces), sum(count for _, count in pieces)
        if path.between is not None:
            around = self._chained(path, path.between)
            return around[0] + inside[0], around[1] + inside[1]
        key = path.front, path.end, self._between(path)
        if key not in self.around:
            model = extracted(self.root, number)
            macs = self._run(model, number)
            self.around[key] = macs - inside[0], _count(model) - inside[1]
        macs, count = self.around[key]
        return macs + inside[0], count + inside[1]

    def _run(self, model: nn.Module, number: int) -> int:
        """What a model of one path costs.

        Raises:
            RewriteError: VR508 if its end cannot take what its front yields.
        """
        try:
            return Propagation(model, self.example, self.run).macs
        except BrokenError as error:
            path = self.paths.table[number]
            message = f"stitch {number}, from '{path.front}' to '{path.end}', does not run"
            notes = [f"{error.operation} in '{error.path}' of {list(map(list, error.shapes))}"]
            raise RewriteError(
                "VR508",
                message,
                notes=notes,
                suggestion="take models whose stages have the same positions",
            ) from error

    def _chained(self, path: Way, mid: Between) -> tuple[int, int]:
        """Without pieces: what its two halves cost, less beginning and end of the third model.

        All three are paths with smaller numbers, and counted.
        """
        one, two = (
            self.around[way.front, way.end, self._between(way)]
            for way in (
                Way(path.front, path.stop, mid.layer, mid.model, mid.start),
                Way(mid.model, mid.stop, path.layer, path.end, path.start),
            )
        )
        alone = self.around[mid.model, mid.model, None]
        return one[0] + two[0] - alone[0], one[1] + two[1] - alone[1]

    def _between(self, path: Way) -> Hashable:
        """What is alike where two paths cost the same between their pieces."""
        if path.layer is None:
            return None
        layer = self.root.get_submodule(f"{STITCHES}.{path.layer}")
        shapes = tuple((n, p.shape) for n, p in layer.named_parameters() if n != "table")
        modules = self.paths.modules(path)
        left = self.run.outputs_of(modules[path.stop - 1])
        entered = None  # the beginning of the end
        if path.start:
            piece = self.paths.pieces[path.end][path.start - 1]
            entered = self.run.outputs_of(f"{path.end}.{piece}").shape
        return type(layer), shapes, left.shape, entered

    def _piece(self, path: str) -> tuple[int, int]:
        if path not in self.pieces:
            costs = self.run.costs_of(path)
            assert costs is not None, path
            self.pieces[path] = costs.macs, _count(self.root.get_submodule(path))
        return self.pieces[path]


def _count(model: nn.Module) -> int:
    """Parameters, of tables by stitch one row."""
    tables: list[Any] = [m for m in told(model) if m.stitches]
    others = sum(int(m.table[1:].numel()) for m in tables)
    return sum(p.numel() for p in model.parameters()) - others
