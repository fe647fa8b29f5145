"""The picture of the angles between gradients of stitches: a histogram for each model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ..profiling.angles import Angles
from .picture import COLOURS

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
        most = max(max(each) for each in shares) or 1.0
        right, bottom = _WIDTH - 24, _HEIGHT - 48
        middle = (_LEFT + right) / 2
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
            'font-family="sans-serif" font-size="12">',
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
            f'<text x="{_LEFT}" y="24" font-size="14">Angles between gradients of stitches</text>',
            f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" stroke="black"/>',
            f'<path d="M{middle:g} {_TOP}V{bottom}" stroke="#888888" stroke-dasharray="4 4"/>',
            f'<text x="{_LEFT - 6}" y="{_TOP + 4}" text-anchor="end">{most:.0%}</text>',
            f'<text x="{_LEFT - 6}" y="{bottom}" text-anchor="end">0</text>',
        ]
        for degrees in (0, 45, 90, 135, 180):
            x = _LEFT + degrees / 180 * (right - _LEFT)
            parts.append(f'<text x="{x:g}" y="{bottom + 18}" text-anchor="middle">{degrees}</text>')
        for i, ((name, found), heights) in enumerate(zip(self.models, shares, strict=True)):
            colour = COLOURS[i % len(COLOURS)]
            y = [bottom - height / most * (bottom - _TOP) for height in heights]
            outline = _outline(y, bottom, right)
            told = f"{escape(name)}: {found.above:.1%} above 90"
            parts += [
                f'<path d="{outline}" fill="{colour}" fill-opacity="0.15" stroke="{colour}" '
                'stroke-width="2"/>',
                f'<text x="{_LEFT + 12}" y="{_TOP + 16 + 16 * i}" fill="{colour}">{told}</text>',
            ]
        return "\n".join([*parts, "</svg>\n"])


def _outline(heights: Sequence[float], bottom: float, right: float) -> str:
    """A path along the tops of bars."""
    width = (right - _LEFT) / len(heights)
    tops = "".join(f"V{y:.1f}H{_LEFT + width * (i + 1):.1f}" for i, y in enumerate(heights))
    return f"M{_LEFT} {bottom}{tops}V{bottom}"
