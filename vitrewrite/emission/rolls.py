"""A loop whose turns do more than call a layer, as one node of a graph that is to be printed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx


@dataclass(eq=False)
class Roll:
    """One turn of a loop over a container, as a graph.

    Attributes:
        start: the number of the first child.
        turns: how many children.
        graph: its inputs are the carried values, then those that never change, then one of each
            group of `cycles`; its outputs what is carried on, then what is read after the loop.
        carried: positions of the carried values among the results; None if only the loop reads one.
        collected: per further result, whether all turns' values are wanted, or the last one.
    """

    container: str
    start: int
    turns: int
    graph: fx.Graph
    carried: tuple[int | None, ...] = ()
    collected: tuple[bool, ...] = ()
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
