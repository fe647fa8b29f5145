"""Variable names: those of the source where they are free, near ones where they are not."""

from __future__ import annotations

import builtins
import itertools
import keyword
from collections.abc import Iterable

from torch import fx

_TAKEN = {"self", "torch", "F", "nn", "math", *keyword.kwlist, *dir(builtins)} - {"input", "len"}


class Names:
    """Which variable holds which node, statement by statement.

    `last_use[node]` is the number of the last statement that reads the node; a name is free again
    for a statement that is not earlier.
    """

    def __init__(self, last_use: dict[fx.Node, int]) -> None:
        self.last_use = last_use
        self.holder: dict[str, fx.Node] = {}
        self.name_of: dict[fx.Node, str] = {}

    def take(self, node: fx.Node, wishes: Iterable[str | None], statement: int) -> str:
        """A name for `node`, assigned in `statement`."""
        fit = [w for w in wishes if w and w != "_" and w.isidentifier() and w not in _TAKEN]
        for wish in itertools.chain(fit, _numbered(fit[0] if fit else "y")):
            if self.free(wish, statement):
                self.holder[wish] = node
                self.name_of[node] = wish
                return wish
        raise AssertionError

    def free(self, name: str, statement: int) -> bool:
        """Whether nothing later needs what `name` holds."""
        held = self.holder.get(name)
        return held is None or self.last_use.get(held, -1) <= statement


def plural(name: str) -> str:
    """A name for a list or tuple of values that are called `name`."""
    if len(name) < 2:
        return "values"
    return f"all_{name}" if name.endswith("s") else f"{name}s"


def _numbered(stem: str) -> Iterable[str]:
    stem = stem.rstrip("0123456789") or stem
    return (f"{stem}{i}" for i in range(2, 1000))
