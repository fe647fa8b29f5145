"""SVG pages of axes and marks, for what has a scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from ..emission.literals import xml

INK, PALE, LINE = "#333333", "#666666", "#e6e6e6"


@dataclass(frozen=True)
class Axis:
    """A range of values on a range of pixels, with round numbers on it."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def round(cls, low: float, high: float, start: float, end: float, count: int = 5) -> Axis:
        """One whose ends are round numbers around some values."""
        step = _step(low, high, count)
        return cls(math.floor(low / step) * step, math.ceil(high / step) * step, start, end)

    def at(self, value: float) -> float:
        """The pixel of a value."""
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[tuple[float, str]]:
        """Round values with what to write there."""
        step = _step(self.low, self.high, count)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [(i * step, f"{round(i * step, 10):g}") for i in range(first, last + 1)]


def _step(low: float, high: float, count: int) -> float:
    """1, 2 or 5 times a power of ten, so that about `count` steps make the range."""
    raw = (high - low or abs(high) or 1.0) / count
    power: float = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= raw * (1 - 1e-9))


class Plot:
    """A white page."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.parts: list[str] = []

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: int = 12,
        ink: str = INK,
        anchor: str = "start",
        bold: bool = False,
        turned: bool = False,
    ) -> None:
        """A line of text on a base line; turned it runs upwards."""
        more = ' font-weight="bold"' if bold else ""
        more += f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
            f'fill="{ink}"{more}>{escape(xml(text))}</text>'
        )

    def line(
        self,
        x: float,
        y: float,
        to_x: float,
        to_y: float,
        *,
        ink: str = LINE,
        dash: str = "",
        width: float = 1,
    ) -> None:
        """A straight line."""
        more = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<path d="M{x:.1f} {y:.1f}L{to_x:.1f} {to_y:.1f}" stroke="{ink}" '
            f'stroke-width="{width:g}" fill="none"{more}/>'
        )

    def path(self, points: Sequence[tuple[float, float]], ink: str) -> None:
        """A line through points."""
        way = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self.parts.append(f'<path d="M{way}" stroke="{ink}" stroke-width="2" fill="none"/>')

    def bar(self, x: float, y: float, width: float, height: float, ink: str) -> None:
        """A filled rectangle."""
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
            f'fill="{ink}"/>'
        )

    def dot(self, x: float, y: float, ink: str, *, radius: float = 3, clear: float = 1) -> None:
        """A filled circle."""
        self.parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{ink}" '
            f'fill-opacity="{clear:g}"/>'
        )

    def upright(self, axis: Axis, left: float, right: float, count: int = 5) -> None:
        """A scale of values to the left, with a thin line at each."""
        for value, told in axis.ticks(count):
            y = axis.at(value)
            self.line(left, y, right, y)
            self.text(left - 6, y + 4, told, ink=PALE, size=11, anchor="end")

    @property
    def svg(self) -> str:
        """The page."""
        size = f'width="{self.width}" height="{self.height}"'
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'{size} font-family="sans-serif">'
        )
        paper = f'<rect {size} fill="white"/>'
        return "\n".join([head, paper, *self.parts, "</svg>\n"])


def hexadecimal(colour: Sequence[float]) -> str:
    """A colour of numbers from 0 to 1 as SVG has it."""
    return "#" + "".join(f"{round(255 * c):02x}" for c in colour)
