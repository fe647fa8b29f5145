"""From what a search came to, to a model that costs what was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from .spaces import SearchedPart, Space

NEAR = 0.01
"""How near to the cost that is asked for a search has to end."""
_PAIRS = 300
"""Up to how many single changes two at once are tried out."""


@dataclass
class _Gate:
    """What is decided about by itself: one gate, or gates that hang together.

    Attributes:
        part: whose it is, and `place` which of its gates; None for all of them.
        costs: by state.
        far: how far logits have to go for each state: over the border, summed.
        state: the one that is taken.
    """

    part: int
    place: int | None
    costs: tuple[float, ...]
    far: tuple[float, ...]
    state: int


Move = tuple[float, int, int]
"""How much further logits have to go, for which gate, into which state."""


class Projection:
    """Open gates that come near to a cost, with as little as possible against their logits.

    The states of least distance are those that the logits say. Gates are then closed or opened,
    those nearest to the border first, as long as that comes nearer to the cost; where single ones
    do not come within 1 %, two at once.

    Args:
        space: what is decided about.
        logits: by part.
        target: MACs of an image.
    """

    def __init__(self, space: Space, logits: Sequence[Sequence[float]], target: float) -> None:
        self.space, self.target = space, target
        pairs = enumerate(zip(space.parts, logits, strict=True))
        self.gates = [gate for i, (part, own) in pairs for gate in _gates(i, part, own)]
        self.open = [
            sum(g.state for g in self.gates if g.part == i and g.place is not None)
            for i, _ in enumerate(space.parts)
        ]
        self.searched = self.cost = space.constant + sum(g.costs[g.state] for g in self.gates)
        self._at_least()
        before = [gate.state for gate in self.gates]
        while self._single() or self._pair():
            pass
        self.moved = sum(a != b.state for a, b in zip(before, self.gates, strict=True))

    @property
    def opened(self) -> list[list[bool]]:
        """Which gates are open, by part."""
        found = [[False] * part.count for part in self.space.parts]
        for gate in self.gates:
            if gate.place is None:
                found[gate.part] = [*self.space.parts[gate.part].states[gate.state]]
            else:
                found[gate.part][gate.place] = bool(gate.state)
        return found

    @property
    def off(self) -> float:
        """How far the cost is from what was asked for, as a share of it."""
        return abs(self.cost - self.target) / self.target

    # -- changes ----------------------------------------------------------------------------------

    def _at_least(self) -> None:
        """Opens the nearest gates of a part of which some must be open."""
        for i, part in enumerate(self.space.parts):
            closed = [n for n, g in enumerate(self.gates) if g.part == i and not g.state]
            missing = 0 if part.states else part.method.least - self.open[i]
            for number in sorted(closed, key=lambda n: self.gates[n].far[1])[: max(missing, 0)]:
                self._take(number, 1)

    def _moves(self) -> list[Move]:
        """All single changes, the nearest first."""
        found = [
            (far - gate.far[gate.state], number, state)
            for number, gate in enumerate(self.gates)
            for state, far in enumerate(gate.far)
            if state != gate.state
        ]
        return sorted(found)

    def _single(self) -> bool:
        """Makes single changes that come nearer, until none does; whether there were any."""
        done = False
        for _, number, state in self._moves():
            if self._nearer(self._change(number, state)) and self._may(number, state):
                self._take(number, state)
                done = True
        return done

    def _pair(self) -> bool:
        """Makes the two changes that come within 1 %, or nearest; whether they come nearer."""
        moves = self._moves()
        if self.off <= NEAR or len(moves) > _PAIRS:
            return False
        found = [
            (max(abs(self.cost + a + b - self.target) / self.target, NEAR), first[0] + second[0],
             first[1:], second[1:])
            for first, second in combinations(moves, 2)
            if first[1] != second[1]
            and self._may(*first[1:]) and self._may(*second[1:])
            and self._nearer((a := self._change(*first[1:])) + (b := self._change(*second[1:])))
        ]  # fmt: skip
        if not found:
            return False
        _, _, first, second = min(found)
        self._take(*first)
        self._take(*second)
        return True

    def _change(self, number: int, state: int) -> float:
        gate = self.gates[number]
        return gate.costs[state] - gate.costs[gate.state]

    def _nearer(self, change: float) -> bool:
        return abs(self.cost + change - self.target) < abs(self.cost - self.target)

    def _may(self, number: int, state: int) -> bool:
        """Whether a change leaves enough gates of its part open."""
        gate = self.gates[number]
        least = self.space.parts[gate.part].method.least
        return gate.place is None or bool(state) or self.open[gate.part] > least

    def _take(self, number: int, state: int) -> None:
        gate = self.gates[number]
        self.cost += self._change(number, state)
        if gate.place is not None:
            self.open[gate.part] += state - gate.state
        gate.state = state


def _gates(number: int, part: SearchedPart, logits: Sequence[float]) -> Iterator[_Gate]:
    """What of a part is decided about by itself, in the state that the logits say."""
    if not part.states:
        for place, (logit, price) in enumerate(zip(logits, part.prices, strict=True)):
            either = max(logit, 0.0), max(-logit, 0.0)
            yield _Gate(number, place, (0.0, price), either, int(logit > 0))
        return
    far = tuple(min(_far(pattern, logits) for pattern in alike) for alike in part.alike)
    yield _Gate(number, None, part.costs, far, far.index(min(far)))


def _far(pattern: Sequence[bool], logits: Sequence[float]) -> float:
    """How far the logits have to go over the border for a pattern, summed."""
    pairs = zip(pattern, logits, strict=True)
    return sum(abs(logit) for there, logit in pairs if there != (logit > 0))
