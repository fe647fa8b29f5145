"""Branches beside a layer, `y = branch(x, y)`, one behind the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from ..tracing.leaves import changed_by
from .editor import Editor, Insertion, join

if TYPE_CHECKING:
    from collections.abc import Iterator


def chain(editor: Editor, unit: str, layer: fx.Node) -> Iterator[fx.Node]:
    """The calls of branches beside one call of a layer, the nearest first."""
    node: fx.Node | None = layer
    while node is not None:
        node = next((u for u in node.users if _is_branch(editor, unit, u, node)), None)
        if node is not None:
            yield node


def _is_branch(editor: Editor, unit: str, node: fx.Node, y: fx.Node) -> bool:
    if node.op != "call_module" or node.args[1:2] != (y,):
        return False
    return changed_by(editor.unit(unit).get_submodule(str(node.target))) == (1,)


def stacked(editor: Editor, unit: str, layer: fx.Node) -> list[Insertion]:
    """The branches beside a layer that clauses of this rewrite put there, the nearest first."""
    known = {insertion.path: insertion for insertion in editor.insertions}
    paths = (join(unit, str(node.target)) for node in chain(editor, unit, layer))
    return [known[path] for path in paths if path in known]


def last(editor: Editor, unit: str, layer: fx.Node, *, folding: bool) -> fx.Node:
    """What a new branch beside a layer changes: the layer's output, or that of a branch there.

    Args:
        editor: of the model.
        unit: path of the unit that calls the layer.
        layer: the call.
        folding: whether the new one folds: it goes before those that do not, and before those that
            an earlier rewrite left there.
    """
    known = {insertion.path: insertion for insertion in editor.insertions}
    node = layer
    for branch in chain(editor, unit, layer):
        found = known.get(join(unit, str(branch.target)))
        if folding and not (found and found.folds):
            break
        node = branch
    return node
