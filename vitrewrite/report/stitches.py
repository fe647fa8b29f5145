"""What training left of stitches: what each costs and scores, and the best of an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from ..errors import FileError, RewriteError
from ..profiling.latencies import Latencies
from ..text import giga, table
from .palette import Interval, best, intervals

_WIDTH, _HEIGHT, _LEFT, _TOP = 720, 360, 64, 48


def _middle(stitch: Any) -> str:
    """What runs of a third model, in words."""
    mid = stitch.get("between")
    return "" if mid is None else f", {mid['model']} {mid['start']}..{mid['stop']}"


@dataclass(frozen=True)
class TrainedStitches:
    """A palette as `tune` reports it.

    Attributes:
        title: the spec and the model.
        macs: of each stitch that is taken out, by number.
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
                "VR538",
                f"'{folder}' has no stitches that were trained",
                suggestion="give a folder that 'tune' wrote of a spec such as esta",
            ) from error
        names = (
            s["front"]
            if s["layer"] is None
            else f"{s['front']} {s['front_blocks']}{_middle(s)}, {s['end']} from "
            f"{s['first_end_block']}"
            for s in all_
        )
        macs = (s.get("macs_lowered", s["macs"]) for s in all_)
        return cls(folder.name, tuple(macs), tuple(names), found)

    @property
    def by(self) -> str:
        """What the intervals are of: `macs` or `latency`."""
        return str(self.found.get("by", "macs"))

    @property
    def costs(self) -> Sequence[float]:
        """MACs or milliseconds of each stitch, as the intervals are."""
        if self.by == "macs":
            return self.macs
        return tuple(self.found["latency"]["ms"])

    def split(self, latency: Latencies | None = None) -> TrainedStitches:
        """The same scores in as many intervals of times, or of MACs.

        Raises:
            RewriteError: VR540 if there are no times.
        """
        costs: Sequence[float] = self.macs if latency is None else latency.ms
        parts = intervals(costs, self.found.get("count", len(self.found["intervals"])))
        rows = [
            {"from": part.low, "to": part.high, "stitches": list(part.stitches),
             "best": self._best(part)}
            for part in parts if part.stitches
        ]  # fmt: skip
        found = {**self.found, "by": "macs", "intervals": rows}
        if latency is not None:
            found |= {"by": "latency", "latency": latency.to_json()}
        return replace(self, found=found)

    def _best(self, part: Interval) -> int | None:
        """By score, or where there was none by what was measured of all."""
        found, measured = self.found, self.found["measured"]
        if found.get("sampling", "scored") == "scored":
            return best(part, found["scores"], found["drawn"])
        return max(part.stitches, key=lambda number: measured[str(number)])

    def timed(self, table: Path | None) -> TrainedStitches:
        """It by latency: by the times of a file, or by those that the run measured.

        Raises:
            FileError: VR541 for a file that is no such table.
            RewriteError: VR540 if the run measured none.
        """
        if table is not None:
            return self.split(Latencies.read(table, len(self.macs)))
        if "latency" not in self.found:
            raise RewriteError(
                "VR540",
                f"no latency of the stitches of '{self.title}' was measured",
                suggestion="'show stitches DIR --latency FILE' measures; then give --table FILE, "
                "or train with stitch_by = latency",
            )
        return self.split(Latencies.of(self.found["latency"], len(self.macs), self.title))

    @property
    def best(self) -> tuple[int, ...]:
        """The best of each interval that has one."""
        return tuple(row["best"] for row in self.found["intervals"] if row["best"] is not None)

    def at(self, cost: float) -> int:
        """The best stitch of the interval that a cost lies in.

        Raises:
            RewriteError: VR539 if that has none.
        """
        known = self.found["intervals"]
        for end in (known[0]["from"], known[-1]["to"]):  # what is shown of it is rounded
            cost = end if math.isclose(cost, end, rel_tol=1e-3) else cost
        for row in reversed(known):
            if row["from"] <= cost <= row["to"] and row["best"] is not None:
                return int(row["best"])
        rows = (r for r in known if r["best"] is not None)
        valid = ", ".join(f"{self._told(r['from'])} to {self._told(r['to'])}" for r in rows)
        raise RewriteError(
            "VR539",
            f"no stitch was chosen in the interval of {self._told(cost)}",
            notes=[f"there are some in {valid}"],
            suggestion="give another cost",
        )

    def _told(self, cost: float) -> str:
        return giga(round(cost)) if self.by == "macs" else f"{cost:.4g} ms"

    def lines(self) -> list[str]:
        """A line for the best of each interval."""
        metric, measured = self.found["metric"], self.found["measured"]
        rows = []
        for number in self.best:
            value = measured.get(str(number))
            told = "" if value is None else f"{metric} {value:.2%}"
            ms = [] if self.by == "macs" else [self._told(self.costs[number])]
            cost = giga(self.macs[number])
            rows.append((f"stitch {number}", cost, *ms, told, self.names[number]))
        return table(rows)

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
        costs = self.costs
        low, high, most = min(costs), max(costs), max(max(scores), 1e-12)
        right, bottom = _WIDTH - 24, _HEIGHT - 48
        unit = " MACs" if self.by == "macs" else ""

        def place(number: int) -> tuple[float, float]:
            share = (costs[number] - low) / ((high - low) or 1)
            return _LEFT + share * (right - _LEFT), bottom - scores[number] / most * (bottom - _TOP)

        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
            'font-family="sans-serif" font-size="12">',
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
            f'<text x="{_LEFT}" y="24" font-size="14">{escape(self.title)}: stitches, and the best '
            "of each interval</text>",
        ]
        for row in self.found["intervals"]:
            x = _LEFT + (row["from"] - low) / ((high - low) or 1) * (right - _LEFT)
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
            f'<text x="{_LEFT}" y="{bottom + 18}">{self._told(low)}</text>',
            f'<text x="{right}" y="{bottom + 18}" text-anchor="end">{self._told(high)}{unit}'
            "</text>",
            f'<text x="{_LEFT - 6}" y="{_TOP + 4}" text-anchor="end">{most:.3g}</text>',
            f'<text x="{_LEFT - 6}" y="{bottom}" text-anchor="end">0</text>',
            f'<text x="{_LEFT + 6}" y="{_TOP - 6}">{escape(axis)}</text>',
            "</svg>\n",
        ]
        return "\n".join(parts)
