"""What training left of stitches: what each costs and scores, and the best of an interval."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ..errors import FileError, RewriteError
from ..text import giga

_WIDTH, _HEIGHT, _LEFT, _TOP = 720, 360, 64, 48


@dataclass(frozen=True)
class TrainedStitches:
    """A palette as `tune` reports it.

    Attributes:
        title: the spec and the model.
        macs: of each stitch, by number.
        names: of each stitch, by number.
        found: `training.stitches` of the report.
    """

    title: str
    macs: tuple[int, ...]
    names: tuple[str, ...]
    found: dict[str, Any]

    @classmethod
    def of(cls, folder: Path, report: Any) -> TrainedStitches:
        """Those of a folder that `tune` wrote, with its report.

        Raises:
            FileError: VR538 if no stitches were trained in it.
        """
        try:
            found, all_ = report["training"]["stitches"], report["stitches"]
        except (KeyError, TypeError) as error:
            raise FileError(
                "VR538", f"'{folder}' has no stitches that were trained",
                suggestion="give a folder that 'tune' wrote of a spec such as esta",
            ) from error  # fmt: skip
        names = (
            s["front"] if s["layer"] is None
            else f"{s['front']} {s['front_blocks']}, {s['end']} from {s['first_end_block']}"
            for s in all_
        )  # fmt: skip
        return cls(folder.name, tuple(s["macs"] for s in all_), tuple(names), found)

    @property
    def best(self) -> tuple[int, ...]:
        """The best of each interval that has one."""
        return tuple(row["best"] for row in self.found["intervals"] if row["best"] is not None)

    def at(self, macs: int) -> int:
        """The best stitch of the interval that a cost lies in.

        Raises:
            RewriteError: VR539 if that has none.
        """
        for row in reversed(self.found["intervals"]):
            if row["from"] <= macs <= row["to"] and row["best"] is not None:
                return int(row["best"])
        rows = (r for r in self.found["intervals"] if r["best"] is not None)
        valid = ", ".join(f"{giga(r['from'])} to {giga(r['to'])}" for r in rows)
        raise RewriteError(
            "VR539", f"no stitch was chosen in the interval of {giga(macs)}",
            notes=[f"there are some in {valid}"], suggestion="give another cost",
        )  # fmt: skip

    def lines(self) -> list[str]:
        """A line for the best of each interval."""
        metric, measured = self.found["metric"], self.found["measured"]
        rows = []
        for number in self.best:
            value = measured.get(str(number))
            told = "" if value is None else f"{metric} {value:.2%}"
            rows.append(
                f"stitch {number:<4} {giga(self.macs[number]):>10}   {told}   {self.names[number]}"
            )
        return rows

    def to_json(self) -> dict[str, Any]:
        """It as data."""
        return {**self.found, "macs": list(self.macs), "best": list(self.best)}

    def picture(self) -> str:
        """An SVG: a dot per stitch by MACs and score, a ring with its number for the best."""
        scores = self.found["scores"]
        if not any(scores):
            scores = [self.found["measured"].get(str(n), 0.0) for n in range(len(self.macs))]
            axis = self.found["metric"]
        else:
            axis = "importance score"
        low, high, most = min(self.macs), max(self.macs), max(max(scores), 1e-12)
        right, bottom = _WIDTH - 24, _HEIGHT - 48

        def place(number: int) -> tuple[float, float]:
            share = (self.macs[number] - low) / max(high - low, 1)
            return _LEFT + share * (right - _LEFT), bottom - scores[number] / most * (bottom - _TOP)

        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
            'font-family="sans-serif" font-size="12">',
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
            f'<text x="{_LEFT}" y="24" font-size="14">{escape(self.title)}: stitches, and the best '
            "of each interval</text>",
        ]
        for row in self.found["intervals"]:
            x = _LEFT + (row["from"] - low) / max(high - low, 1) * (right - _LEFT)
            parts.append(f'<path d="M{x:.1f} {_TOP}V{bottom}" stroke="#dddddd"/>')
        parts.append(f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" stroke="black"/>')
        for number in range(len(self.macs)):
            x, y = place(number)
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="#888888"/>')
        for number in self.best:
            x, y = place(number)
            parts += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="none" stroke="#c03030" '
                'stroke-width="2"/>',
                f'<text x="{x:.1f}" y="{y - 9:.1f}" text-anchor="middle">{number}</text>',
            ]
        parts += [
            f'<text x="{_LEFT}" y="{bottom + 18}">{giga(low)}</text>',
            f'<text x="{right}" y="{bottom + 18}" text-anchor="end">{giga(high)} MACs</text>',
            f'<text x="{_LEFT - 6}" y="{_TOP + 4}" text-anchor="end">{most:.3g}</text>',
            f'<text x="{_LEFT - 6}" y="{bottom}" text-anchor="end">0</text>',
            f'<text x="{_LEFT + 6}" y="{_TOP - 6}">{escape(axis)}</text>',
            "</svg>\n",
        ]
        return "\n".join(parts)
