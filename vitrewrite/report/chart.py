"""The picture of a benchmark: time ratios to the base as bars, with their spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..emission.file import render
from ..text import plural
from .picture import COLOURS

KINDS = {
    "forward": "forward",
    "training": "training step",
    "layer_forward_backward": "first adapted layer, forward and backward",
    "profiling": "profiling a batch",
    "tuning": "tuning on digits",
}
"""What is measured, as in the JSON and in words."""

_STEPS = (0.1, 0.2, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
_TICKS = 8  # at most
_FAR = 4.0
"""How far beyond most of the bars the axis goes, as a factor; what is longer is cut."""


@dataclass(frozen=True)
class Bar:
    """One model: the median of its ratios, smallest and largest, and its ratio of MACs."""

    name: str
    median: float
    low: float
    high: float
    macs: float | None
    colour: str
    compiled: bool
    ms: str
    cut: bool = False
    far: bool = False

    def within(self, end: float) -> Bar:
        """What an axis has room for; it is `cut` without its median, `far` without its largest."""
        macs = None if self.macs is None else min(self.macs, end)
        return replace(
            self,
            low=min(self.low, end),
            high=min(self.high, end),
            macs=macs,
            cut=self.median > end,
            far=self.high > end,
        )


@dataclass(frozen=True)
class BarGroup:
    """A measurement."""

    title: str
    bars: tuple[Bar, ...]

    @property
    def has_compiled(self) -> bool:
        """Whether one of its bars is about a compiled model."""
        return any(bar.compiled for bar in self.bars)


def chart(result: Mapping[str, Any]) -> str:
    """The SVG: a group per measurement, a bar per model."""
    groups = [
        BarGroup(
            title, tuple(_bar(name, row) for name, row in result[kind].items() if "ratio" in row)
        )
        for kind, title in KINDS.items()
    ]
    groups = [group for group in groups if group.bars]
    step, count = _ticks([bar for group in groups for bar in group.bars])
    end = count * step
    groups = [BarGroup(g.title, tuple(bar.within(end) for bar in g.bars)) for g in groups]
    return render(
        "bench.svg.jinja",
        groups=groups,
        end=end,
        ticks=[(i * step, f"{i * step:g}") for i in range(count + 1)],
        title=f"{result['spec']} on {result['model']}",
        subtitle=f"{result['device_name']}, {plural(result['threads'], 'thread')}, "
        f"batch {result['batch']}, {result['dtype']}, torch {result['torch']}, "
        f"{plural(result['rounds'], 'round')}",
    )


def _ticks(bars: Sequence[Bar]) -> tuple[float, int]:
    """The step between round numbers of the axis, and how many there are.

    A bar or a round that took far longer than most of the bars does not make these short.
    """
    usual = sorted(value for bar in bars for value in (bar.median, bar.macs) if value is not None)
    longest = max((max(bar.high, bar.macs or 0.0) for bar in bars), default=1.0)
    if usual:
        longest = min(longest, _FAR * usual[3 * (len(usual) - 1) // 4])
    step = next((s for s in _STEPS if longest / s < _TICKS), longest)
    return step, int(longest / step) + 1


def _bar(name: str, row: Mapping[str, Any]) -> Bar:
    kind = name.removesuffix(" compiled")
    known = {"base": "#888888", "rewritten": COLOURS[0], "lowered": COLOURS[2]}
    colour = known.get(kind, COLOURS[1])
    return Bar(
        name,
        row["ratio"],
        row["ratio_min"],
        row["ratio_max"],
        row.get("macs_ratio"),
        colour,
        kind != name,
        f"{row['median_ms']:.3g} ms",
    )
