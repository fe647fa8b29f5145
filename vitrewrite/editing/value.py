"""Values that one place makes and others read."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from ..anatomy.sites import Place
from ..tracing.notes import HINT, VALUE
from . import wiring
from .editor import Editor, after


@dataclass(frozen=True)
class Value:
    """A tensor of the model, with what is done to it where it is read.

    Attributes:
        place: where it is made.
        steps: methods of the tensor to call, with their arguments.
    """

    place: Place
    steps: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    def log(self) -> Value:
        """Its logarithm."""
        return self.then("log")

    def detached(self) -> Value:
        """The same, and no gradient flows back through it."""
        return self.then("detach")

    def then(self, method: str, *args: Any) -> Value:
        """What a method of the tensor makes of it."""
        return replace(self, steps=(*self.steps, (method, args)))

    def made(self, editor: Editor) -> Value:
        """The same, made once where it comes from, and not by each that reads it."""
        node = self.read(editor, self.place.unit)
        steps = "_".join(method for method, _ in self.steps)
        HINT.put(node, f"{steps}_{HINT.get(node.all_input_nodes[0]) or 'value'}")
        return Value(Place(self.place.unit, node.name))

    def read(self, editor: Editor, unit: str) -> fx.Node:
        """The node that holds it in the graph of `unit`, wired there if needed."""
        node = wiring.read(editor, self.place, unit)
        for method, args in self.steps:
            if method == "detach" and unit not in editor.stops:
                editor.stops.append(unit)
            node = _applied(editor, unit, node, method, args)
        return node


def _applied(
    editor: Editor, unit: str, node: fx.Node, method: str, args: tuple[Any, ...]
) -> fx.Node:
    for user in node.users:
        if user.op == "call_method" and user.target == method and user.args == (node, *args):
            return user
    graph = editor.graph(unit)
    with after(graph, [node, *_made_beside(node, method)]):
        return graph.call_method(method, (node, *args))


def _made_beside(node: fx.Node, method: str) -> list[fx.Node]:
    """What the same method made of other items of the tuple that a node is of: in their order."""
    if node.target is not operator.getitem or not isinstance(node.args[0], fx.Node):
        return []
    items = [n for n in node.args[0].users if n.target is operator.getitem]
    return [n for item in items for n in item.users if n.target == method]


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Lengths of what a node yields in the model as it was; none if they are not known."""
    value = VALUE.get(node)
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()
