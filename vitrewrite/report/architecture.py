"""`show architecture`: what each block is made of, after figure 4 of He et al., TPAMI 2024."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ..emission.file import render
from ..rewrite.composition import ATTENTION, DROPPED, OTHER, SKIP, Composition, composition
from ..rewrite.lowered import lowered
from ..text import plural
from .picture import COLOURS

if TYPE_CHECKING:
    from ..editing.measure import Propagation
    from ..language.model import Spec
    from ..rewrite.compilation import Compilation
    from ..rewrite.measures import Measures
    from ..rewrite.rewritten import Rewritten

STEP, GAP = 46, 10
"""Pixels from block to block, and between stages."""
BARS = 120
"""Pixels of the widest MLP of a stage."""
_MARGIN, _ABOVE, _BELOW, _PANEL, _LEAST = 24, 56, 34, 26, 460  # around panels, and their widths
_MARK = 30
_PLAIN = {ATTENTION: COLOURS[0], "1x1": COLOURS[4], "3x3": COLOURS[1], SKIP: "#ffffff",
          DROPPED: "#ffffff", OTHER: "#888888"}  # fmt: skip
_WORDS = {ATTENTION: "attention, with its heads", SKIP: "skip", DROPPED: "block dropped",
          OTHER: "something else"}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """A model, block by block, as it is when it is lowered.

    Attributes:
        title: the spec and the model.
        blocks: those that are gone included.
        params: its parameters, and those of the model as it was.
        macs: the same of multiply-accumulates for one image.
    """

    title: str
    blocks: tuple[Composition, ...]
    params: tuple[int, int]
    macs: tuple[int, int]

    @classmethod
    def planned(cls, plan: Compilation) -> Architecture:
        """Of a spec on its model, without weights."""
        measures, editor = plan.measures, plan.measures.editor_lowered
        blocks = composition(plan.base, plan.anatomy, editor, measures.run_lowered, plan.original)
        return cls(
            _title(plan.spec, plan.model),
            tuple(blocks),
            (_count(editor.root), _count(plan.base)),
            (measures.macs_lowered, measures.macs_base),
        )

    @classmethod
    def of(cls, rewritten: Rewritten) -> Architecture:
        """Of a model with its weights, some of which may say what of it is there."""
        made = rewritten if rewritten.lowered else lowered(rewritten)
        measures: Measures = made.measures
        base: Propagation = made.cost
        blocks = composition(made.base, made.result.anatomy, made.result.editor, measures.run, base)
        return cls(
            _title(made.spec, made.model_name),
            tuple(blocks),
            (_count(made.module), _count(made.base)),
            (measures.macs, measures.macs_base),
        )

    @property
    def hidden(self) -> tuple[int, int]:
        """Hidden units of all MLPs, and of the model as it was."""
        now = sum(each.hidden or 0 for each in self.blocks)
        return now, sum(each.hidden_before or 0 for each in self.blocks)

    @property
    def cost(self) -> str:
        """Parameters and multiply-accumulates, in words."""
        params, macs = (f"{_of(*pair)}" for pair in (self.params, self.macs))
        return f"{params} parameters, {macs} MACs"

    def __str__(self) -> str:
        """What it is made of, in a line."""
        kinds = Counter(each.mixing for each in self.blocks)
        words = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        now, before = self.hidden
        count = plural(len(self.blocks), "block")
        return f"{self.title}: {count}: {words}; {now:,} of {before:,} hidden units"

    def to_json(self) -> dict[str, Any]:
        """The numbers in the picture."""
        return {
            "title": self.title, "params": self.params[0], "params_base": self.params[1],
            "macs": self.macs[0], "macs_base": self.macs[1],
            "blocks": [each.to_json() for each in self.blocks],
        }  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """A block in the picture; lengths in pixels.

    Attributes:
        fill: the colour of its operation; `full` how much of the mark has it, from 0 to 1.
        dashed: whether the mark's outline is.
        bar: of its MLP.
    """

    left: int
    number: int
    label: str
    fill: str
    full: float
    dashed: bool
    ink: str
    hidden: str
    bar: float


@dataclass(frozen=True)
class StageRun:
    """A run of blocks of one stage."""

    left: int
    width: int


@dataclass(frozen=True)
class WidthLine:
    """Where the MLPs of neighbouring blocks ended, as they were."""

    left: int
    width: int
    height: float
    label: str


@dataclass(frozen=True)
class Sheet:
    """A model in the picture."""

    left: int
    top: int
    title: str
    cost: str
    stages: tuple[StageRun, ...]
    columns: tuple[Drawn, ...]
    lines: tuple[WidthLine, ...]


def architecture_picture(shown: Sequence[Architecture], across: int = 1) -> str:
    """The SVG: a panel per model.

    Args:
        shown: the models.
        across: how many stand side by side.
    """
    widths = [max(_LEAST, _width(each)) for each in shown]
    tall = _ABOVE + _MARK + BARS + _BELOW
    panels = [
        _panel(
            each,
            _MARGIN + (i % across) * (max(widths) + _PANEL),
            _MARGIN + i // across * (tall + _PANEL),
        )
        for i, each in enumerate(shown)
    ]
    rows = -(-len(shown) // across)
    columns = min(across, len(shown))
    width = 2 * _MARGIN + columns * (max(widths) + _PANEL) - _PANEL
    legend = _legend(shown, width)
    return render(
        "architecture.svg.jinja",
        panels=panels,
        legend=legend,
        mark=_MARK,
        bars=BARS,
        above=_ABOVE,
        step=STEP,
        width=width,
        below=_MARGIN + rows * (tall + _PANEL),
        last=legend[-1][-1] + 24 if legend else 0,
    )


def _panel(shown: Architecture, left: int, top: int) -> Sheet:
    columns: list[Drawn] = []
    stages: list[StageRun] = []
    lines: list[WidthLine] = []
    x = left
    for run in _stages(shown.blocks):
        most = max((n for b in run for n in (b.hidden, b.hidden_before) if n), default=1)
        stages.append(StageRun(x, len(run) * STEP))
        columns += [_column(each, x + i * STEP, most) for i, each in enumerate(run)]
        for width, same in groupby(run, lambda each: each.hidden_before):
            count = len(list(same))
            if width is not None:
                lines.append(WidthLine(x, count * STEP, BARS * width / most, str(width)))
            x += count * STEP
        x += GAP
    return Sheet(left, top, shown.title, shown.cost, tuple(stages), tuple(columns), tuple(lines))


def _column(each: Composition, left: int, most: int) -> Drawn:
    heads, before = each.heads, each.heads_before
    full = heads / before if heads and before else 1.0
    label = _written(each.mixing)
    if each.mixing == ATTENTION:
        label = f"{heads}/{before}" if full < 1 else str(heads or "")
    pale = full < 1 or each.mixing in (SKIP, DROPPED, "1x1")
    return Drawn(
        left=left,
        number=each.block.index,
        label="" if each.mixing in (DROPPED, OTHER) else label,
        fill=_fill(each.mixing),
        full=min(full, 1.0),
        dashed=each.mixing == DROPPED,
        ink="#333333" if pale else "#ffffff",
        hidden="" if each.hidden is None else str(each.hidden),
        bar=BARS * (each.hidden or 0) / most,
    )


def _written(kind: str) -> str:
    """With the sign of multiplication in it."""
    return kind.replace("x", "\u00d7")


def _fill(kind: str) -> str:
    return _PLAIN.get(kind, COLOURS[3])


def _stages(blocks: Sequence[Composition]) -> list[list[Composition]]:
    found: dict[int, list[Composition]] = {}
    for each in blocks:
        found.setdefault(each.block.stage, []).append(each)
    return list(found.values())


def _width(shown: Architecture) -> int:
    return len(shown.blocks) * STEP + (len(_stages(shown.blocks)) - 1) * GAP


def _legend(shown: Sequence[Architecture], width: int) -> list[tuple[str, str, bool, int, int]]:
    """Colour, words and whether the outline is dashed, of the operations there are, and where."""
    found: list[tuple[str, str, bool, int, int]] = []
    x, y = _MARGIN, 0
    for fill, words, dashed in _operations(shown):
        wide = 60 + 7 * len(words)
        if x > _MARGIN and x + wide > width - _MARGIN:
            x, y = _MARGIN, y + 24
        found.append((fill, words, dashed, x, y))
        x += wide
    return found


def _operations(shown: Sequence[Architecture]) -> Iterator[tuple[str, str, bool]]:
    there = {each.mixing for one in shown for each in one.blocks}
    sizes = sorted((k for k in there if k not in _WORDS), key=lambda k: (len(k), k))
    for kind in [ATTENTION, *sizes, SKIP, DROPPED, OTHER]:
        if kind in there:
            words = _WORDS.get(kind, f"{_written(kind)} convolution")
            yield _fill(kind), words, kind == DROPPED


def _title(spec: Spec, model: str) -> str:
    return f"{spec.name} on {model}" if spec.clauses else model


def _of(now: int, before: int) -> str:
    """A number, and what it was."""
    unit, name = (1e9, "G") if before >= 1e9 else (1e6, "M")
    if now == before:
        return f"{now / unit:.4g} {name}"
    return f"{now / unit:.4g} of {before / unit:.4g} {name}"


def _count(root: Any) -> int:
    return sum(p.numel() for p in root.parameters())
