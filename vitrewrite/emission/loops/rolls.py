"""A loop whose turns do more than call a layer, as one node of a graph that is to be printed.

The node's arguments are three tuples: first values of what is carried, what never changes, and the
tuples of values that alternate. Its results are `item`s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx


@dataclass(eq=False)
class Roll:
    """One turn of a loop over a container, as a graph.

    Attributes:
        start: the number of the first child.
        turns: how often.
        step: how many children a turn calls.
        graph: its inputs are the carried values, those that never change, one of each group of
            those that alternate, and lists; its outputs what is carried on, then other results. In
            the `meta` of calls, `child` is the number of the child, counted from the turn's first,
            and `other` that of another container's child, in the first turn.
        carried: positions of the carried values among the results; None if only the loop reads one.
        lists: how many lists are filled, which are the last results.
        origins: the clauses that put something into other turns than the one in `graph`.
    """

    container: str
    start: int
    turns: int
    step: int
    graph: fx.Graph
    carried: tuple[int | None, ...] = ()
    lists: int = 0
    origins: tuple[str, ...] = ()
    __name__ = "roll"

    def __call__(self, *_: Any) -> Any:
        """Never called: a graph with rolls is printed, not run."""
        raise NotImplementedError


def spread(values: Any) -> Any:
    """Printed as `*values` inside a tuple; never called."""
    raise NotImplementedError


def item(roll: Any, number: int) -> Any:
    """A result of a loop; printed as the variable that holds it, never called."""
    raise NotImplementedError


def is_item(node: fx.Node) -> bool:
    """Whether the node is a result of a loop."""
    return node.target is item
