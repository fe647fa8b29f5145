"""What training left of stitches: what each costs and scores, and the best of an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import FileError, RewriteError
from ..profiling.latencies import Latencies
from ..text import giga, table
from .palette import Interval, best, intervals
from .plot import PALE, Axis, Plot

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
        """An SVG: a dot per stitch by MACs and score, a larger one with its number for the best."""
        scores = self.found["scores"]
        if not any(scores):
            scores = [self.found["measured"].get(str(n), 0.0) for n in range(len(self.macs))]
            axis = self.found["metric"]
        else:
            axis = "importance score"
        costs, known = self.costs, self.found["intervals"]
        unit = " MACs" if self.by == "macs" else ""
        across = Axis(min(costs), max(costs), _LEFT, _WIDTH - 24)
        upright = Axis(0.0, max(*scores, 1e-12), _HEIGHT - 48, _TOP)
        plot = Plot(_WIDTH, _HEIGHT)
        title = f"{self.title}: stitches, and the best of each interval"
        plot.text(_LEFT, 24, title, size=17, bold=True)
        plot.text(_LEFT + 6, _TOP - 6, axis)
        plot.upright(upright, across.start, across.end)
        for row in known:
            x = across.at(row["from"])
            plot.line(x, upright.start, x, upright.end, ink="#dddddd")
        places = [(across.at(c), upright.at(v)) for c, v in zip(costs, scores, strict=True)]
        for place in places:
            plot.dot(*place, "#888888")
        for number in self.best:
            x, y = places[number]
            plot.dot(x, y, "#c03030", radius=6, clear=0.5)
            plot.text(x, y - 9, str(number), anchor="middle")
        below = upright.start + 18
        plot.text(across.start, below, self._told(across.low), ink=PALE)
        plot.text(across.end, below, f"{self._told(across.high)}{unit}", ink=PALE, anchor="end")
        return plot.svg
