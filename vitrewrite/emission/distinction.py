"""Names for classes that a rewrite made differ: `BlockWithMerge` beside `Block`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch import fx

from ..tracing.leaves import is_helper, is_inserted
from ..tracing.notes import HINT, WIRED

if TYPE_CHECKING:
    from .classes import Class

CONTAINERS = frozenset({"Sequential", "ModuleList", "ModuleDict", "Module"})
"""Of torch: a class of such a name would say nothing of what it holds."""


def by_place(path: str) -> str:
    """A name for what is at a path: `Downsample`, `Stage` of what is in `stages`; "" for the root.

    So is called what torch only says to be a container.
    """
    parts = path.split(".")
    words = next((part for part in reversed(parts) if part and not part.isdigit()), "")
    numbered = parts[-1].isdigit() and words.endswith("s") and not words.endswith("ss")
    one = words[:-1] if numbered else words
    return "".join(word.capitalize() for word in one.split("_"))


def distinguish(classes: Sequence[Class]) -> None:
    """Renames classes of one name by what only some of them have: modules, inputs, outputs.

    A name stays as it is where that does not tell the classes apart.
    """
    by_name: dict[str, list[Class]] = {}
    for cls in classes:
        by_name.setdefault(cls.name, []).append(cls)
    for same in by_name.values():
        if len(same) == 1:
            continue
        features = [list(dict.fromkeys(_features(cls))) for cls in same]
        common = set.intersection(*map(set, features))
        labels = [next((f for f in found if f not in common), "") for found in features]
        if len(set(labels)) == len(labels):
            for cls, label in zip(same, labels, strict=True):
                words = "".join(w.capitalize() for w in label.split("_"))
                cls.name += f"With{words}" if words else ""


def _features(cls: Class) -> Iterator[str]:
    """What passes gave a class, the most telling first."""
    graph: fx.Graph | None = cls.graphs[0] if cls.graphs else None
    if graph is None:
        return
    for node in graph.nodes:
        if node.op == "call_module":
            module = cls.sample.get_submodule(str(node.target))
            if is_inserted(module) and not is_helper(module):
                yield str(node.target).rpartition(".")[2]
    for node in graph.nodes:
        if node.op == "placeholder" and WIRED.get(node):
            yield str(HINT.get(node) or node.name)
    results = next(n for n in graph.nodes if n.op == "output").args[0]
    for node in results[1:] if isinstance(results, tuple) else ():
        if isinstance(node, fx.Node):
            yield str(HINT.get(node) or node.name)
