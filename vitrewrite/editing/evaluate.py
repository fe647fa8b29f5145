"""Evaluates one place of a model from values given at others, at lowering."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from ..anatomy.sites import Place
from ..errors import RewriteError
from ..tracing.notes import ARITY
from ..tracing.unit import Unit, run_node
from . import wiring
from .editor import Editor, join


class Evaluation:
    """Computes what is asked for, and only what that needs.

    Args:
        editor: of the model, in eval mode.
        given: tensors at some places.
    """

    def __init__(self, editor: Editor, given: Mapping[Place, torch.Tensor]) -> None:
        self.editor = editor
        self.given = given
        self.known: dict[tuple[str, str], Any] = {}

    @torch.no_grad()
    def value(self, unit: str, node: fx.Node) -> Any:
        """The value of a node in the graph of a unit.

        Raises:
            RewriteError: VR405 if it depends on the image.
        """
        key = unit, node.name
        if key not in self.known:
            self.known[key] = self._compute(unit, node)
        return self.known[key]

    def _compute(self, unit: str, node: fx.Node) -> Any:
        place = Place(unit, node.name)
        if place in self.given:
            return self.given[place]
        if node.op == "placeholder":
            if not unit:
                raise RewriteError("VR405", "a constant was asked for that depends on the image")
            above, calls = wiring.caller(self.editor, unit)
            inputs = [n for n in node.graph.nodes if n.op == "placeholder"]
            argument = calls[0].args[inputs.index(node)]
            return self.value(above, argument) if isinstance(argument, fx.Node) else argument
        if (inside := self._result(unit, node)) is not None:
            return self.value(*inside)
        values = {n: self.value(unit, n) for n in node.all_input_nodes}
        return run_node(node, self.editor.unit(unit), values)

    def _result(self, unit: str, node: fx.Node) -> tuple[str, fx.Node] | None:
        """Where an item of what a unit yields is made: the others may hang on the image."""
        call = node.args[0] if node.target is operator.getitem else None
        if not isinstance(call, fx.Node) or call.op != "call_module" or not ARITY.on(call):
            return None
        path = join(unit, str(call.target))
        inner = self.editor.root.get_submodule(path)
        if not isinstance(inner, Unit) or inner.template is None:
            return None
        results: Any = inner.template.graph.output_node().args[0]
        made = results[node.args[1]]
        return (path, made) if isinstance(made, fx.Node) else None
