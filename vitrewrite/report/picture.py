"""`graph.svg`: the blocks of a model and what each clause did to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..anatomy.decoder import DecoderLayer
from ..anatomy.sites import Block
from ..emission.file import render
from ..rewrite.compilation import Compilation
from ..tracing.unit import Unit

if TYPE_CHECKING:
    from ..anatomy.sites import Anatomy
    from ..rewrite.rewritten import Rewritten

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#000000")
"""Okabe and Ito's palette, told apart by colour-blind readers too."""


@dataclass(frozen=True)
class Part:
    """A stretch of a cell: a matrix or rows of one, with the colours of the clauses about it."""

    label: str
    colours: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """A layer of a block, or a bar for what a clause put at the block or its attention."""

    parts: tuple[Part, ...]
    bar: bool = False


@dataclass(frozen=True)
class Column:
    """A block."""

    label: str
    stage: int
    tokens: str
    cells: tuple[Cell, ...]


def picture(rewritten: Rewritten | Compilation) -> str:
    """The SVG: one column per block, one cell per layer, a colour per clause."""
    touched: dict[str, tuple[str, ...]] = {}
    legend = []
    for step in rewritten.result.steps:
        colour = COLOURS[step.clause.number % len(COLOURS)]
        legend.append((colour, f"{step.change} {step.clause.text}"))
        for role in step.sites:
            touched[role] = (*touched.get(role, ()), colour)
    tokens = rewritten.measures.tokens
    columns = _columns(rewritten.result.anatomy, touched, tokens)
    head = next((c[0] for r, c in touched.items() if r.startswith("head")), None)
    layers = list(_layers(rewritten, touched))
    return render(
        "graph.svg.jinja",
        columns=columns,
        legend=legend,
        head=head,
        tall=_tall(columns),
        layers=layers,
        layers_tall=_tall(layers),
        title=f"{_model(rewritten)}: {rewritten.spec.name}",
    )


def picture_of_blocks(anatomy: Anatomy, title: str) -> str:
    """The SVG of a model that nothing was done to."""
    columns = _columns(anatomy, {}, ())
    return render(
        "graph.svg.jinja",
        columns=columns,
        legend=[],
        head=None,
        tall=_tall(columns),
        layers=[],
        layers_tall=_tall([]),
        title=title,
    )


def _model(made: Rewritten | Compilation) -> str:
    """What it was made from, as it was named."""
    return made.model if isinstance(made, Compilation) else made.model_name


def _columns(
    anatomy: Anatomy, touched: Mapping[str, tuple[str, ...]], tokens: Sequence[int | None]
) -> list[Column]:
    """A column for each block."""
    found = []
    for place, block in enumerate(anatomy.blocks):
        count = tokens[place] if place < len(tokens) else None
        cells = tuple(_cells(block, touched))
        found.append(Column(str(block.index), block.stage, str(count or ""), cells))
    return found


def _layers(
    rewritten: Rewritten | Compilation, touched: Mapping[str, tuple[str, ...]]
) -> Iterator[Column]:
    """The layers of a decoder, with bars for the clauses about all of it."""
    decoder = rewritten.result.anatomy.decoder
    if decoder is None:
        return
    side = rewritten.result.example[0].shape[-2]
    for layer in decoder.layers:
        cells = [Cell((Part("", (c,)),), bar=True) for c in _bars(rewritten, layer)]
        for site in layer.linears:
            words = site.role.split(".")[2:]
            label = ("self " if words[0] == "self_attn" else "") + words[-1]
            cells.append(Cell((Part(label, touched.get(site.role, ())),)))
        grid = decoder.levels[layer.level].grid
        scale = "" if grid is None else f"1/{round(side / grid[0])}"
        yield Column(str(layer.index), layer.level, scale, tuple(cells))


def _bars(rewritten: Rewritten | Compilation, layer: DecoderLayer) -> Iterator[str]:
    """The colours of clauses about the decoder: one that adds layers is about these."""
    inserted = rewritten.result.editor.insertions
    for step in rewritten.result.steps:
        number = step.clause.number
        own = [i.path for i in inserted if i.clause == number and isinstance(i.module, Unit)]
        sites = {"decoder", layer.role, layer.cross_attn.role}
        if sites & set(step.sites) and (not own or layer.unit in own):
            yield COLOURS[number % len(COLOURS)]


def _tall(columns: Sequence[Column]) -> int:
    """Pixels that the cells of the tallest column take."""
    return max((sum(_height(c) for c in column.cells) for column in columns), default=26)


def _height(cell: Cell) -> int:
    """Pixels that a cell takes, the gap below it included; the template knows them too."""
    return 12 if cell.bar else 26


def _cells(block: Block, touched: Mapping[str, tuple[str, ...]]) -> Iterator[Cell]:
    """The layers in order of use; bars before them for the block, behind attention's for that."""
    if block.role in touched:
        yield Cell((Part("", touched[block.role]),), bar=True)
    attn = block.attn
    rows = [] if attn is None else [s for s in (attn.q, attn.k, attn.v) if s and s.rows]
    bar = None if attn is None else touched.get(attn.role)
    last = max((i for i, s in enumerate(block.linears) if ".attn." in s.role), default=-1)
    for i, site in enumerate(block.linears):
        inside = [s for s in rows if s.weight == site.weight]
        colours = touched.get(site.role, ())
        name = site.role.rpartition(".")[2].partition("[")[0]
        whole = Part(name, colours)
        split = [Part(s.role[-1], colours + touched.get(s.role, ())) for s in inside]
        yield Cell(tuple(split) if any(p.colours for p in split) else (whole,))
        if bar and i == last:
            yield Cell((Part("", bar),), bar=True)
