"""Models with loops that carry state, by how they are to be printed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

DEPTH = 5


class Pair(nn.Module):
    """Returns two values."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, state: torch.Tensor, level: torch.Tensor) -> Any:
        x = self.first(x + state) * level
        return x, self.second(x) - state


class Both(Pair):
    """Returns one value, which needs all."""

    def forward(self, x: torch.Tensor, state: torch.Tensor, level: torch.Tensor) -> Any:
        return torch.add(*super().forward(x, state, level))


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Pair() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(4)
        self.drop = nn.Dropout(0.3)
        self.levels = nn.Parameter(torch.randn(3, 4))


class TwoCarried(Base):
    def forward(self, x: torch.Tensor) -> Any:
        state, level = torch.tanh(x), self.levels[0]
        for layer in self.layers:
            x, state = layer(x, state, level)
        return x, state


class Swapped(Base):
    def forward(self, x: torch.Tensor) -> Any:
        state, level = torch.tanh(x), self.levels[0]
        for layer in self.layers:
            state, x = layer(x, state, level)
        return x - state


class Alternating(Base):
    def forward(self, x: torch.Tensor) -> Any:
        levels = [level * 2 for level in self.levels]
        for i, layer in enumerate(self.layers):
            mask = self.norm(x).sigmoid()
            x, _ = layer(x, mask, levels[i % 3])
            x = self.drop(x)
        return self.norm(x)


class Collecting(Base):
    def forward(self, x: torch.Tensor) -> Any:
        states, scale = [x], self.levels.sum()
        seen: tuple[torch.Tensor, ...] = ()
        for layer in self.layers:
            x, state = layer(x, states[-1], scale)
            states.append(state)
            seen += (self.norm(x),)
        return {"x": x, "states": tuple(states), "seen": seen, "first": seen[0].sum(), "s": scale}


class TwoLists(Base):
    """Two lists of nothing that has a name."""

    def forward(self, x: torch.Tensor) -> Any:
        first, second = [], []
        for layer in self.layers:
            x, _ = layer(x, x, self.levels[0])
            first.append(x.tanh())
            second.append(x.sigmoid())
        return tuple(first), tuple(second)


class Whole(Base):
    def forward(self, x: torch.Tensor) -> Any:
        state, level, seen = torch.tanh(x), self.levels[1], []
        for layer in self.layers:
            x, state = layer(x, state, level)
            seen.append(self.norm(x))
        return {"x": x, "seen": tuple(seen), "level": level}


class Uneven(Base):
    """The third turn does something else."""

    def forward(self, x: torch.Tensor) -> Any:
        state = torch.tanh(x)
        for i, layer in enumerate(self.layers):
            x, state = layer(x.relu() if i == 2 else x, state, self.levels[0])
        return x, state


class LastReturnsLess(Base):
    """What nobody reads of the last layer is no part of its program."""

    def __init__(self) -> None:
        super().__init__()
        self.layers[-1].extra = nn.Linear(4, 4)  # another class than the others

    def forward(self, x: torch.Tensor) -> Any:
        state = torch.tanh(x)
        for layer in self.layers:
            x, state = layer(x, state, self.levels[0])
        return self.norm(x)


class Rounds(Base):
    """Rounds of three levels; the last layer of each takes what the first one gave, too."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Both() if i % 3 == 2 else Pair() for i in range(10))

    def forward(self, x: torch.Tensor) -> Any:
        query, kept, seen = torch.tanh(x), x, []
        for i, layer in enumerate(self.layers):
            level = self.levels[i % 3] + 1
            if i % 3 == 2:
                x = layer(x, kept, query * level)
            else:
                x, state = layer(x, query, level)
                query = self.norm(state) * level
                kept = state if i % 3 == 0 else kept
            seen.append(self.norm(x))
        return x, tuple(seen)


class Inside(Base):
    """Variables of one name that only the turns read."""

    def forward(self, x: torch.Tensor) -> Any:
        def halves(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            half = value.tanh()
            return half, value - half

        (a, b), level = halves(x.exp()), self.levels[0]
        for layer in self.layers:
            x, state = layer(x, a * b, level)
            a, b = halves(state)
        return x


class OtherChildren(Base):
    """Every turn has a layer of its own from another container, of which the first is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(4) for _ in range(DEPTH + 1))

    def forward(self, x: torch.Tensor) -> Any:
        seen = []
        for layer, norm in zip(self.layers, self.norms[1:], strict=True):
            x, _ = layer(x, norm(x), self.levels[0])
            seen.append(self.norms[0](x))
        return tuple(seen)


class RoundsWithOthers(Base):
    """Rounds of two layers, and a third of another container; one of those is left over."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Pair() for _ in range(6))
        self.extra = nn.ModuleList(Both() for _ in range(4))

    def forward(self, x: torch.Tensor) -> Any:
        state = torch.tanh(x)
        for i in range(3):
            x, kept = self.layers[2 * i](x, state, self.levels[0])
            x, state = self.layers[2 * i + 1](x, kept.sigmoid(), self.levels[1])
            x = self.extra[i](x, kept, self.levels[2])
        return self.extra[3](x, state, self.levels[2])


class LastOnly(Base):
    """Of a value that is made anew in every turn, the last is read."""

    def forward(self, x: torch.Tensor) -> Any:
        for layer in self.layers:
            mask = self.norm(x).sigmoid()
            x, _ = layer(x, mask, self.levels[0])
        return x, mask * 2


class PlainNames(nn.Module):
    """A simple loop over a container whose name is that of a value."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> Any:
        layer = x.exp()
        for each in self.layer:
            layer = each(layer)
        return layer, x


class Biased(Base):
    """What is carried on is made with something from outside, not alike for the first turn."""

    def forward(self, x: torch.Tensor) -> Any:
        state, shift = torch.tanh(x), self.levels[1].exp()
        for layer in self.layers:
            x, made = layer(x, state, self.levels[0])
            state = made.sigmoid() + shift
        return x, state


class SameStart(Base):
    """One value starts two variables, and is read in every turn."""

    def forward(self, x: torch.Tensor) -> Any:
        start = torch.tanh(x)
        x, state = start, start
        for layer in self.layers:
            x, state = layer(x, state, start)
            state = state + start
        return x, state


class SwappedStart(Base):
    """Variables that hold each other's first value."""

    def forward(self, x: torch.Tensor) -> Any:
        state = torch.tanh(x)
        state, x = x, state
        for layer in self.layers:
            state, x = layer(x, state, self.levels[0])
        return x, state


class TakenNames(Base):
    """Names that a loop would like to use are read in it, or later."""

    def forward(self, x: torch.Tensor) -> Any:
        i, layer = torch.tanh(x), x.exp()
        levels = [v + 1 for v in self.levels]
        values, xs, state = levels[2], x.sin(), i
        for k, each in enumerate(self.layers):
            x, state = each(x, state, levels[k % 2])
            x = x + i + xs
            x = x * values
        return x, state, layer


class DrawnAhead(Base):
    """Numbers are drawn in front of each layer that decide nothing."""

    def forward(self, x: torch.Tensor) -> Any:
        state, level = torch.tanh(x), self.levels[0]
        for layer in self.layers:
            torch.rand([]), torch.rand(2)
            x, state = layer(self.drop(x), state, level)
        return x, state


class DrawnBehind(Base):
    """A number is drawn behind each layer and what drops out."""

    def forward(self, x: torch.Tensor) -> Any:
        state, level = torch.tanh(x), self.levels[0]
        for layer in self.layers:
            x, state = layer(x, state, level)
            state = self.drop(state)
            torch.rand([])
        return x, state


class DrawnOnce(Base):
    """A number is drawn in one turn only."""

    def forward(self, x: torch.Tensor) -> Any:
        state = torch.tanh(x)
        for i, layer in enumerate(self.layers):
            x, state = layer(x, state, self.levels[0])
            if i == 2:
                torch.rand([])
        return x, state


class DrawnAfterwards(Base):
    """All turns' results are dropped out, but after all turns."""

    def forward(self, x: torch.Tensor) -> Any:
        states, state = [], torch.tanh(x)
        for layer in self.layers:
            x, state = layer(self.drop(x), state, self.levels[0])
            states.append(x)
        return tuple(self.drop(s) for s in states)


class ChangedAfterwards(Base):
    """A value is changed in place a turn after it was made, and read after all turns."""

    def forward(self, x: torch.Tensor) -> Any:
        states, state = [], torch.tanh(x)
        for layer in self.layers:
            before = state
            x, state = layer(x, state, self.levels[0])
            before *= 2
            states.append(state)
        return x, tuple(s.exp() for s in states)


ROLLED = {
    TwoCarried: ["x, state = layer"], Swapped: ["for layer in"], Alternating: ["[i % 3]"],
    Whole: [".append(", "tuple("], Biased: [".sigmoid() + shift"],
    SwappedStart: [], TwoLists: ["values2.append("],
    OtherChildren: ["self.norms[i + 1](x)", "self.norms[0](x)"],
    Inside: [], DrawnAhead: ["torch.rand([])", "torch.rand(2)"], DrawnBehind: ["torch.rand([])"],
    LastOnly: ["return x, mask * 2"], TakenNames: [],
}  # fmt: skip
PARTS = {
    Collecting: ["for layer in self.layers[1:]:", "self.layers[0]("],
    LastReturnsLess: ["for layer in self.layers[:4]:", "self.layers[4]("],
    RoundsWithOthers: ["for i in range(0, 6, 2):", "self.extra[i // 2](", "self.extra[3]("],
    SameStart: ["for layer in self.layers:"],
    Rounds: ["for i in range(0, 9, 3):", "self.layers[i + 2](", "self.layers[9]("],
}
STRAIGHT = (Uneven, DrawnOnce, DrawnAfterwards, ChangedAfterwards)
ALL = [*ROLLED, *PARTS, *STRAIGHT, PlainNames]
