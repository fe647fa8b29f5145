"""Random numbers that a turn of a loop draws and nobody reads.

Loops over layers that may be skipped in training draw one per layer, whether or not they look at
it. What is drawn afterwards depends on it, so such a draw stays, once per turn.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from ..alike import operands, shape
from ..effects import has_effect
from .growing import Turns

Draws = list[fx.Node]


def add_draws(turns: Turns) -> None:
    """Adds, as columns, what the turns draw alike in front of, or else behind, their calls."""
    drawn = [n for n in turns.graph.nodes if n not in turns.where and _is_unread(n)]
    calls = sorted((n for column in turns.calls for n in column), key=turns.order.__getitem__)
    places = [turns.order[call] for call in calls]
    gaps = [
        [n for n in drawn if start < turns.order[n] < end]
        for start, end in zip([-1.0, *places], [*places, float("inf")], strict=True)
    ]
    ahead, behind = dict(zip(calls, gaps, strict=False)), dict(zip(calls, gaps[1:], strict=True))
    for column in turns.calls:
        first, *others = (ahead[call] for call in column)
        rest = len(others[0])
        if not _add(turns, [first[len(first) - rest :], *others]):
            *others, last = (behind[call] for call in column)
            _add(turns, [*others, last[: len(others[0])]])


def _is_unread(node: fx.Node) -> bool:
    return has_effect(node) and node.op == "call_function" and not (node.users or operands(node))


def _add(turns: Turns, found: Sequence[Draws]) -> bool:
    """Adds a column per draw, if there are some and those of each turn are alike."""
    alike = len({tuple(map(shape, draws)) for draws in found}) == 1
    free = not any(n in turns.where for draws in found for n in draws)
    if not (alike and free and found[0]):
        return False
    for column in zip(*found, strict=True):
        turns.add(column)
    return True
