"""The order of clauses where several of them act on one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from ..editing.branches import is_behind
from ..editing.clause import ClauseRef
from ..editing.editor import Editor, Insertion


@dataclass(frozen=True)
class Order:
    """Clauses at one place, nearest to the model's own value first.

    Attributes:
        sites: the places at which it is so.
        clauses: in the order of the dataflow.
        reason: why that is not the order of the spec, or nothing.
    """

    sites: tuple[str, ...]
    clauses: tuple[ClauseRef, ...]
    reason: str

    def __str__(self) -> str:
        names = (
            f"{c.pass_name} (line {c.span.line})" if c.span else c.pass_name for c in self.clauses
        )
        more = f" and {len(self.sites) - 1} more" if len(self.sites) > 1 else ""
        why = f"not as in the spec: {self.reason}" if self.reason else "as in the spec"
        return f"{self.sites[0]}{more}: {', then '.join(names)}; {why}"

    def to_json(self) -> dict[str, Any]:
        """The order as data."""
        return {
            "sites": list(self.sites),
            "clauses": [{"clause": c.text, "line": c.span.line if c.span else None}
                        for c in self.clauses],
            "as_in_spec": not self.reason,
            "reason": self.reason or None,
        }  # fmt: skip


def orders(editor: Editor) -> tuple[Order, ...]:
    """Where several clauses act on one value, equal orders together."""
    found: dict[tuple[int, ...], dict[str, None]] = {}
    first: dict[tuple[int, ...], list[Insertion]] = {}
    for stack in editor.stacks.values():
        stack = [i for i in stack if any(_meet(i, other) for other in stack)]
        numbers = tuple(dict.fromkeys(i.clause for i in stack))
        if len(numbers) > 1:
            first.setdefault(numbers, stack)
            found.setdefault(numbers, {})[stack[0].site.role] = None
    return tuple(
        Order(tuple(sites), _clauses(first[numbers]), _reason(first[numbers]))
        for numbers, sites in found.items()
    )


def _meet(one: Insertion, other: Insertion) -> bool:
    """Whether two modules of different clauses change the same part of a value."""
    if one.clause == other.clause:
        return False
    first, second = (getattr(i.module, "rows", None) for i in (one, other))
    if not first or not second:
        return True
    return any(start < b and a < stop for start, stop in first for a, b in second)


def _clauses(stack: Sequence[Insertion]) -> tuple[ClauseRef, ...]:
    return tuple({i.clause: i.site.clause for i in stack}.values())


def _reason(stack: Sequence[Insertion]) -> str:
    turned = [(a, b) for a, b in combinations(stack, 2) if a.clause > b.clause]
    if any(a.folds and not b.folds for a, b in turned):
        return "linear updates, which fold into the weight, go first"
    if any(is_behind(a.module) < is_behind(b.module) for a, b in turned):
        return "what is beside a layer goes before what is behind it"
    return "facts of the tokens are changed before they are read" if turned else ""
