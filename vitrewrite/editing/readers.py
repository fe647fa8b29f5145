"""Who else reads a value, or what it is a rearranged form of."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import fx, nn

from ..tracing.leaves import is_inserted
from ..tracing.notes import ORIGIN, VALUE
from . import branches, wiring
from .editor import Editor, join

_REARRANGES = frozenset({
    "view", "reshape", "permute", "transpose", "flatten", "unflatten", "contiguous", "roll", "pad",
    "squeeze", "unsqueeze", "movedim", "getitem", "dropout", "clone", "to", "index_select",
})  # fmt: skip
"""Operations that hand on numbers of a tensor, some of them or with zeros between."""


@dataclass(frozen=True)
class Consumer:
    """A node that reads a value.

    Attributes:
        unit: path of the unit whose graph holds it.
    """

    unit: str
    node: fx.Node

    def __str__(self) -> str:
        if self.node.op == "output":
            return f"what calls '{self.unit or 'the model'}'"
        if self.node.op == "call_module":
            return f"'{join(self.unit, str(self.node.target))}'"
        name = getattr(self.node.target, "__name__", str(self.node.target))
        return f"'{name.strip('_')}' in '{self.unit or 'the model'}'"


@dataclass(frozen=True)
class Origin:
    """Where a value comes from.

    Attributes:
        unit: path of the unit whose graph holds `node`.
        node: what makes its numbers, and not only moves them.
        others: who else reads them on the way: what is in front of another layer, but nothing else
            that passes put in, and nothing that asks for sizes.
    """

    unit: str
    node: fx.Node
    others: tuple[Consumer, ...]


def origin(editor: Editor, unit: str, node: fx.Node, own: Collection[fx.Node]) -> Origin:
    """Follows a value back to what made it, through units, rearrangements and modules of passes.

    Args:
        editor: of the model.
        unit: path of the unit whose graph holds `node`.
        node: the value.
        own: readers of it that do not count.
    """
    others: list[Consumer] = []
    skipped: Collection[fx.Node] = own
    while True:
        others += [
            Consumer(unit, n) for n in node.users if n not in skipped and _counts(editor, unit, n)
        ]
        if node.op == "placeholder" and unit:
            inputs = [n for n in node.graph.nodes if n.op == "placeholder"]
            unit, skipped = wiring.caller(editor, unit)
            source: object = next(iter(skipped)).args[inputs.index(node)]
        else:
            source, skipped = _moved(editor, unit, node), (node,)
        if not isinstance(source, fx.Node):
            return Origin(unit, node, tuple(others))
        node = source


def _counts(editor: Editor, unit: str, user: fx.Node) -> bool:
    """Whether a node reads numbers for the model itself."""
    if user.op == "call_module":
        module = editor.unit(unit).get_submodule(str(user.target))
        return not is_inserted(module) or branches.is_ahead(module)
    if ORIGIN.on(user):
        return False
    if user.op == "output" or not user.users:
        return user.op == "output"
    number = VALUE.on(user) and not isinstance(VALUE.of(user), torch.Tensor)
    return not number and any(_counts(editor, unit, n) for n in user.users)


def _moved(editor: Editor, unit: str, node: fx.Node) -> object:
    """What a node is a rearranged or changed form of, or None."""
    if node.op == "call_module":
        module = editor.unit(unit).get_submodule(str(node.target))
        drops = isinstance(module, (nn.Dropout, nn.Identity))
        return node.args[0] if drops else branches.changed(editor, unit, node)
    name = getattr(node.target, "__name__", node.target)
    return node.args[0] if name in _REARRANGES and node.args else None
