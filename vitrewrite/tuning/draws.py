"""Structure drawn at random near a cost: what a search has to be better than.

Layers with states get one of them, all alike likely. MLPs and heads get a share of their units, all
shares alike likely, scaled so that the model costs what is asked for; which units is drawn too.
He et al., TPAMI 2024, table 5.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .projection import NEAR, Projection
from .spaces import SearchedPart, Space

_TRIES = 1000


def drawn(space: Space, target: float, generator: torch.Generator) -> Projection:
    """Open gates by chance: the first draw within 1 % of a cost, else the nearest one, projected.

    Args:
        space: what is decided about.
        target: MACs of an image.
        generator: what the draw hangs on.
    """
    best: list[list[bool]] = []
    off = float("inf")
    for _ in range(_TRIES):
        opened = _draw(space, target, generator)
        now = abs(space.at(opened) - target) / target
        if now < off:
            best, off = opened, now
        if off <= NEAR:
            break
    return Projection(space, [_logits(each, generator) for each in best], target)


def _draw(space: Space, target: float, generator: torch.Generator) -> list[list[bool]]:
    states = {
        i: part.states[_number(len(part.states), generator)]
        for i, part in enumerate(space.parts)
        if part.states
    }
    left = target - space.constant - sum(space.parts[i].cost(s) for i, s in states.items())
    others = [part for part in space.parts if not part.states]
    shares = iter(_shares(others, left, torch.rand(len(others), generator=generator).tolist()))
    return [
        [*states[i]] if i in states else _some(part, next(shares), generator)
        for i, part in enumerate(space.parts)
    ]


def _shares(parts: Sequence[SearchedPart], cost: float, shares: Sequence[float]) -> list[float]:
    """Shares of units, scaled to a cost; where one would be above all of them, the others more."""
    whole = [sum(part.prices) for part in parts]
    found, free = [0.0] * len(parts), {*range(len(parts))}
    while free:
        scale = cost / max(sum(shares[i] * whole[i] for i in free), 1e-9)
        full = {i for i in free if shares[i] * scale >= 1}
        for i in full or free:
            found[i] = min(max(shares[i] * scale, 0.0), 1.0)
            cost -= found[i] * whole[i]
        free = free - full if full else set()
    return found


def _some(part: SearchedPart, share: float, generator: torch.Generator) -> list[bool]:
    """So many of a part's gates, by chance."""
    count = min(max(round(share * part.count), part.method.least), part.count)
    kept = {*torch.randperm(part.count, generator=generator)[:count].tolist()}
    return [i in kept for i in range(part.count)]


def _number(below: int, generator: torch.Generator) -> int:
    return int(torch.randint(below, (), generator=generator))


def _logits(opened: Sequence[bool], generator: torch.Generator) -> list[float]:
    """Logits that say what is open, at distances by chance."""
    far = (torch.rand(len(opened), generator=generator) + 0.5).tolist()
    return [each if there else -each for each, there in zip(far, opened, strict=True)]
