"""What stands at a layer, `y = branch(x, y)` or `y = module(y)`, one behind the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx, nn

from ..tracing.leaves import changed_by, is_inserted
from .editor import Editor, Insertion, join

if TYPE_CHECKING:
    from collections.abc import Iterator


def chain(editor: Editor, unit: str, layer: fx.Node) -> Iterator[fx.Node]:
    """The calls of what stands at one call of a layer, the nearest first.

    What stands at a part that ends in the layer comes behind them, and is none of them.
    """
    around = {insertion.path for insertion in editor.insertions if insertion.around}
    node: fx.Node | None = layer
    while node is not None:
        node = next((u for u in node.users if _is_branch(editor, unit, u, node)), None)
        if node is None or join(unit, str(node.target)) in around:
            return
        yield node


def _is_branch(editor: Editor, unit: str, node: fx.Node, y: fx.Node) -> bool:
    stands = changed(editor, unit, node) is y and (node.args[1:2] == (y,) or node.args == (y,))
    return stands and not is_ahead(editor.unit(unit).get_submodule(str(node.target)))


def changed(editor: Editor, unit: str, call: fx.Node) -> object:
    """What a call of an inserted module with one result yields a changed form of, or None."""
    if call.op != "call_module":
        return None
    changes = changed_by(editor.unit(unit).get_submodule(str(call.target)))
    return call.args[changes[0]] if len(changes) == 1 and changes[0] is not None else None


def is_ahead(module: nn.Module) -> bool:
    """Whether a module changes what a layer reads, and not what one yields."""
    return is_inserted(module) and bool(getattr(module, "ahead", False))


def is_behind(module: nn.Module) -> bool:
    """Whether a module is given what a layer yields and no more."""
    return changed_by(module) == (0,) and not is_ahead(module)


def stacked(editor: Editor, unit: str, layer: fx.Node) -> list[Insertion]:
    """What stands at a layer that clauses of this rewrite put there, the nearest first."""
    known = {insertion.path: insertion for insertion in editor.insertions}
    paths = (join(unit, str(node.target)) for node in chain(editor, unit, layer))
    return [known[path] for path in paths if path in known]


def last(
    editor: Editor, unit: str, layer: fx.Node, *, folding: bool, behind: bool = False
) -> fx.Node:
    """What a new module at a layer changes: the layer's output, or that of a module there.

    Args:
        editor: of the model.
        unit: path of the unit that calls the layer.
        layer: the call.
        folding: whether the new one folds: it goes before those that do not, and before those that
            an earlier rewrite left there.
        behind: whether it is called with that alone: of those that fold it goes behind all.
    """
    known = {insertion.path: insertion for insertion in editor.insertions}
    node = layer
    for branch in chain(editor, unit, layer):
        found = known.get(join(unit, str(branch.target)))
        if folding and not (found and found.folds and (behind or not is_behind(found.module))):
            break
        node = branch
    return node
