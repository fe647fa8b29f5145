"""The picture of `bench --by-block`: bytes of training against the index of the one tuned block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..text import plural
from .picture import COLOURS
from .plot import INK, PALE, Axis, Plot

KINDS = {"saved_bytes": "saved for backward", "peak_bytes": "peak of a training step"}
"""What is measured, as in the JSON and in words."""
LINES = {"all": ("all of the spec", COLOURS[1]), "none": ("without what is in blocks", COLOURS[2])}
"""What the blocks are compared with."""
_WIDTH, _LEFT, _RIGHT, _TOP, _TALL, _GAP = 860, 70, 640, 96, 200, 76


def memory_chart(result: Mapping[str, Any]) -> str:
    """The SVG: a bar for each block, and lines at the whole and at what is left without blocks."""
    rows: Mapping[str, Mapping[str, Any]] = result["by_block"]
    kinds = [k for k in KINDS if all(row.get(k) is not None for row in rows.values())]
    plot = Plot(_WIDTH, _TOP + len(kinds) * (_TALL + _GAP))
    plot.text(
        20, 30, f"{result['spec']} on {result['model']}, one block at a time", size=17, bold=True
    )
    told = f"{result['device_name']}, batch {result['batch']}, {result['dtype']}"
    plot.text(20, 52, f"{told}, torch {result['torch']}; without weights and inputs", ink=PALE)
    for place, kind in enumerate(kinds):
        _panel(
            plot,
            {n: row[kind] / 2**20 for n, row in rows.items()},
            KINDS[kind],
            _TOP + place * (_TALL + _GAP),
        )
    return plot.svg


def _panel(plot: Plot, values: Mapping[str, float], title: str, top: int) -> None:
    """One kind of memory, in MiB."""
    bottom = top + _TALL
    axis = Axis.round(0.0, max(values.values()), bottom, top)
    plot.text(_LEFT, top - 12, f"{title}, MiB", bold=True)
    plot.upright(axis, _LEFT, _RIGHT)
    blocks = [n for n in values if n not in LINES]
    step = (_RIGHT - _LEFT) / max(len(blocks), 4)
    every = -(-len(blocks) // 24)
    for number, name in enumerate(blocks):
        middle, y = _LEFT + (number + 0.5) * step, axis.at(values[name])
        plot.bar(middle - 0.36 * step, y, 0.72 * step, bottom - y, COLOURS[0])
        if len(blocks) <= 14:
            plot.text(middle, y - 3, f"{values[name]:.3g}", size=10, anchor="middle")
        if number % every == 0:
            plot.text(middle, bottom + 15, name, size=11, ink=PALE, anchor="middle")
    plot.line(_LEFT, bottom, _RIGHT, bottom, ink=INK)
    plot.text(
        (_LEFT + _RIGHT) / 2, bottom + 34, "the one block", size=11, ink=PALE, anchor="middle"
    )
    _lines(plot, values, axis)


def _lines(plot: Plot, values: Mapping[str, float], axis: Axis) -> None:
    """What the blocks are compared with; names do not stand on each other."""
    below = axis.start + 30.0
    for name, (words, ink) in sorted(LINES.items(), key=lambda each: values.get(each[0], 0.0)):
        if name not in values:
            continue
        y = axis.at(values[name])
        plot.line(_LEFT, y, _RIGHT, y, ink=ink, dash="6 4", width=1.5)
        below = min(y + 4, below - 18)
        plot.text(_RIGHT + 8, below, f"{words}: {values[name]:.3g}", ink=ink)


def memory_lines(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A table: trained parameters and MiB by block, a heading first."""
    heading = [("block", "trained", "saved MiB", "peak MiB")]
    rows = [
        (name, f"{row['trained']:,}", *(_mebibytes(row[kind]) for kind in KINDS))
        for name, row in result["by_block"].items()
    ]
    return [*heading, *rows]


def described(result: Mapping[str, Any]) -> str:
    """What was measured, in words."""
    return (
        f"{result['spec']} on {result['model']}, one block at a time: batch {result['batch']}, "
        f"{result['dtype']}, {result['device']} ({result['device_name']}), "
        f"{plural(result['threads'], 'thread')}, torch {result['torch']}"
    )


def _mebibytes(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:.2f}"
