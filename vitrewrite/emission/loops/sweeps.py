"""A loop over the items of tuples, side by side, as one node of a graph that is to be printed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx


@dataclass(frozen=True)
class Over:
    """What is gone through.

    Attributes:
        part: the part of a tuple, as `[1:]`; of children, their list.
        hint: what one of it is called.
        calls: of children, the calls of one in a turn.
    """

    part: str
    hint: str | None
    calls: tuple[fx.Node, ...] = ()


@dataclass(eq=False)
class Sweep:
    """One turn of a loop over tuples, as a graph; the target of a node that is printed, not run.

    The node's arguments are two tuples: what is gone through, of which children are no part, and
    other values. Its results are lists, as `item`s; if `element` is given it is the one list.

    Attributes:
        graph: its inputs are an item of each tuple, the number of the turn, the other values, and
            lists, to which it appends.
        over: the tuples and children.
        turns: how often.
        first: the number of the first turn, if that is read.
        lists: how many lists are filled.
        element: what is put into the one list, if that is written as a comprehension.
    """

    graph: fx.Graph
    over: tuple[Over, ...]
    turns: int
    first: int | None
    lists: int
    element: Any = None
    __name__ = "sweep"

    def __call__(self, *_: Any) -> Any:
        """Never called: a graph with sweeps is printed, not run."""
        raise NotImplementedError
