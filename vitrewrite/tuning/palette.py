"""Which of several stitches a step trains, and which are used in the end: draws by cost and score.

He et al., "Efficient Stitchable Task Adaptation", CVPR 2024: the range of costs is split into
intervals of equal width, one is drawn of those that hold stitches, and in it a stitch by the
softmax of the scores. In the end each interval has its best.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import torch


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


def intervals(costs: Sequence[int], count: int) -> tuple[Interval, ...]:
    """The range of the costs in so many parts of equal width; one if all cost the same."""
    low, high = min(costs), max(costs)
    if low == high:
        return (Interval(low, high, tuple(range(len(costs)))),)
    borders = [low + (high - low) * i / count for i in range(count + 1)]
    places = [min(bisect.bisect_right(borders, cost) - 1, count - 1) for cost in costs]
    return tuple(
        Interval(borders[i], borders[i + 1], tuple(n for n, p in enumerate(places) if p == i))
        for i in range(count)
    )


def shares(scores: Sequence[float], *, temperature: float, normalised: bool) -> torch.Tensor:
    """The probability of each stitch of an interval: the softmax of their scores."""
    values = torch.tensor(scores, dtype=torch.float64)
    if normalised and float(values.max()) > 0:
        values = values / values.max()
    return torch.softmax(values / temperature, 0)


def draw(
    parts: Sequence[Interval], scores: Sequence[float], generator: torch.Generator, *,
    temperature: float, normalised: bool,
) -> int:  # fmt: skip
    """A stitch: an interval that holds some, each as likely, and one of them by its score."""
    held = [part.stitches for part in parts if part.stitches]
    chosen = held[int(torch.randint(len(held), (1,), generator=generator))]
    found = shares([scores[n] for n in chosen], temperature=temperature, normalised=normalised)
    return chosen[int(torch.multinomial(found, 1, generator=generator))]


def best(part: Interval, scores: Sequence[float], counts: Sequence[int]) -> int | None:
    """The stitch of an interval with the highest score, of those that were drawn at all."""
    drawn = [number for number in part.stitches if counts[number]]
    return max(drawn, key=lambda number: scores[number], default=None)
