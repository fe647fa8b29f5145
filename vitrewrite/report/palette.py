"""What several stitches cost, in intervals, and the best of each by its score.

He et al., "Efficient Stitchable Task Adaptation", CVPR 2024: the range of costs is split into
intervals of equal width, and in the end each has its best.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A range of costs.

    Attributes:
        low: where it begins.
        high: where it ends; the last one holds its end too.
        stitches: numbers of those in it.
    """

    low: float
    high: float
    stitches: tuple[int, ...]


def intervals(costs: Sequence[float], count: int) -> tuple[Interval, ...]:
    """The range of the costs in so many parts of equal width; one if all cost the same."""
    low, high = min(costs), max(costs)
    if low == high:
        return (Interval(low, high, tuple(range(len(costs)))),)
    borders = [low + (high - low) * i / count for i in range(count)] + [high]
    places = [min(bisect.bisect_right(borders, cost) - 1, count - 1) for cost in costs]
    return tuple(
        Interval(borders[i], borders[i + 1], tuple(n for n, p in enumerate(places) if p == i))
        for i in range(count)
    )


def best(part: Interval, scores: Sequence[float], counts: Sequence[int]) -> int | None:
    """The stitch of an interval with the highest score, of those that were drawn at all."""
    drawn = [number for number in part.stitches if counts[number]]
    return max(drawn, key=lambda number: scores[number], default=None)
