"""Lowering: from a rewritten tree to the cheapest equal one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from ..declare import Pass
from .editor import Editor, Insertion
from .sites import Folding


def lower_tree(
    root: nn.Module, insertions: Sequence[Insertion], methods: Mapping[int, Pass]
) -> list[Insertion]:
    """Lowers what can be lowered, last insertion first, in place.

    Args:
        root: a tree of its own: weights are replaced, never changed.
        insertions: what passes put in; their paths are looked up in `root`.
        methods: the pass of each clause.

    Returns:
        The insertions that stay.
    """
    editor = Editor(root)
    left = []
    for insertion in reversed(insertions):
        method = methods[insertion.clause]
        if "lowers_exactly" not in method.claims:
            left.append(insertion)
            continue
        module = root.get_submodule(insertion.path)
        method.lower(Folding(editor, insertion), module)
    editor.clean()
    return left[::-1]
