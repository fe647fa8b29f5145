"""The picture of the angles between gradients of stitches: a histogram for each model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..profiling.angles import Angles
from .picture import COLOURS
from .plot import PALE, Axis, Plot

_WIDTH, _HEIGHT, _LEFT, _TOP = 720, 360, 64, 40
_BIN = 10  # degrees


@dataclass(frozen=True)
class AnglesPicture:
    """Angles of several models, by the names that stand in the picture."""

    models: tuple[tuple[str, Angles], ...]

    def to_json(self) -> list[dict[str, Any]]:
        """It as data."""
        return [
            {"name": name, "pairs": len(found.pairs), "images": found.images,
             "stitches": found.stitches, "above_90": found.above, "mean": found.mean,
             "degrees": [[i, j, round(angle, 4)] for i, j, angle in found.pairs]}
            for name, found in self.models
        ]  # fmt: skip

    def lines(self) -> list[str]:
        """A line for each model."""
        return [
            f"{found.above:7.2%} of {len(found.pairs)} angles above 90 degrees, mean "
            f"{found.mean:.1f}   {name}"
            for name, found in self.models
        ]

    def picture(self) -> str:
        """An SVG: shares of angles as outlines, with a line at 90 degrees."""
        shares = [found.shares(_BIN) for _, found in self.models]
        degrees = Axis(0.0, 180.0, _LEFT, _WIDTH - 24)
        upright = Axis(0.0, max(map(max, shares)) or 1.0, _HEIGHT - 48, _TOP)
        plot = Plot(_WIDTH, _HEIGHT)
        plot.text(_LEFT, 24, "Angles between gradients of stitches", size=17, bold=True)
        plot.upright(upright, degrees.start, degrees.end)
        for value in (0, 45, 90, 135, 180):
            x = degrees.at(value)
            plot.text(x, upright.start + 18, str(value), ink=PALE, anchor="middle")
        plot.text(degrees.at(90), upright.start + 36, "degrees", anchor="middle")
        middle = degrees.at(90)
        plot.line(middle, upright.end, middle, upright.start, ink=PALE, dash="4 4")
        for i, ((name, found), heights) in enumerate(zip(self.models, shares, strict=True)):
            ink = COLOURS[i % len(COLOURS)]
            plot.path(_outline(heights, degrees, upright), ink)
            told = f"{name}: {found.above:.1%} above 90"
            plot.text(_LEFT + 12, _TOP + 16 + 16 * i, told, ink=ink)
        return plot.svg


def _outline(heights: Sequence[float], across: Axis, upright: Axis) -> list[tuple[float, float]]:
    """Along the tops of bars."""
    found = [(across.at(0.0), upright.at(0.0))]
    for i, height in enumerate(heights):
        y = upright.at(height)
        found += [(across.at(_BIN * i), y), (across.at(_BIN * (i + 1)), y)]
    return [*found, (across.at(180.0), upright.at(0.0))]
