"""`graph.svg`: the blocks of a model and what each clause did to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..emission.file import render

if TYPE_CHECKING:
    from ..rewrite.rewritten import Rewritten

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#000000")
"""Okabe and Ito's palette, told apart by colour-blind readers too."""


@dataclass(frozen=True)
class Cell:
    """A matrix of a block, coloured if a clause changed it."""

    label: str
    colour: str | None


@dataclass(frozen=True)
class Column:
    """A block."""

    label: str
    stage: int
    tokens: str
    cells: tuple[Cell, ...]


def picture(rewritten: Rewritten) -> str:
    """The SVG: one column per block, one cell per matrix, a colour per clause."""
    touched = {
        role: COLOURS[step.clause.number % len(COLOURS)]
        for step in rewritten.result.steps
        for role in step.sites
    }
    legend = [
        (COLOURS[step.clause.number % len(COLOURS)], f"{step.change} {step.clause.text}")
        for step in rewritten.result.steps
    ]
    tokens = rewritten.measures.tokens
    columns = []
    for block in rewritten.result.anatomy.blocks:
        cells = []
        for part in block.linears:
            name = part.role.rpartition(".")[2]
            mark = touched.get(part.role) or touched.get(block.role)
            cells.append(Cell(name.partition("[")[0], mark))
        count = tokens[block.index] if block.index < len(tokens) else None
        columns.append(Column(str(block.index), block.stage, str(count or ""), tuple(cells)))
    head = next((c for r, c in touched.items() if r.startswith("head")), None)
    return render(
        "graph.svg.jinja", columns=columns, legend=legend, head=head,
        rows=max((len(c.cells) for c in columns), default=1),
        title=f"{rewritten.model_name}: {rewritten.spec.name}",
    )  # fmt: skip
