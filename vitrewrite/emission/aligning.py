"""Which nodes of two programs do the same, as far as that shows in the nodes themselves."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import fx

from ..tracing.nodes import marks_of
from ..tracing.notes import ARITY, HINT
from .expressions import defaults_of
from .skeleton import is_written_out, slice_parts

MAX_NODES = 300
"""Longer programs are not compared: it takes their lengths' product."""


def aligned(first: fx.Graph, second: fx.Graph) -> dict[fx.Node, fx.Node]:
    """The longest series of nodes that both have in this order: of the first, those of the second.

    Of several, one in which variables have the same names, and what comes first is the same.
    """
    rows, columns = list(first.nodes), list(second.nodes)
    if max(len(rows), len(columns)) > MAX_NODES:
        return {}
    left, right = [_look(n) for n in rows], [_look(n) for n in columns]
    best = [[0.0] * (len(columns) + 1) for _ in range(len(rows) + 1)]
    for i in reversed(range(len(rows))):
        for j in reversed(range(len(columns))):
            best[i][j] = max(best[i + 1][j], best[i][j + 1])
            if left[i] == right[j]:
                best[i][j] = max(best[i][j], best[i + 1][j + 1] + _worth(rows[i], columns[j]))
    found: dict[fx.Node, fx.Node] = {}
    i = j = 0
    while i < len(rows) and j < len(columns):
        worth = _worth(rows[i], columns[j]) if left[i] == right[j] else -1.0
        if best[i][j] == best[i + 1][j + 1] + worth:
            found[rows[i]] = columns[j]
            i, j = i + 1, j + 1
        elif best[i][j] == best[i + 1][j]:
            i += 1
        else:
            j += 1
    return found


def _worth(first: fx.Node, second: fx.Node) -> float:
    return 1.25 if HINT.get(first) == HINT.get(second) else 1.0


def _look(node: fx.Node) -> Hashable:
    """Equal for nodes that may be the same: all but what they read, and numbers."""
    if node.op in ("placeholder", "output"):
        return node.op
    known = ARITY.get(node), *marks_of(node)
    if node.op == "call_module":  # one may be given more
        return node.op, node.target, len(node.kwargs), *known
    fixed = is_written_out(node)
    kwargs = {k: v for k, v in node.kwargs.items() if not may_lack(node, k)}
    return node.op, node.target, _plain((node.args, kwargs), fixed), *known


def may_lack(node: fx.Node, keyword: str) -> bool:
    """Whether a call without an argument is one with None."""
    return node.op == "call_function" and defaults_of(node.target).get(keyword, ...) is None


def _plain(value: Any, fixed: bool) -> Hashable:
    if isinstance(value, fx.Node):
        return "node"
    if isinstance(value, (tuple, list)):
        return (type(value).__name__, *(_plain(v, fixed) for v in value))
    if isinstance(value, dict):
        return ("dict", *((k, _plain(v, fixed)) for k, v in value.items()))
    if isinstance(value, slice):
        return ("slice", *(_plain(v, fixed) for v in slice_parts(value)))
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (type(value).__name__,) if number and not fixed else (type(value).__name__, value)
