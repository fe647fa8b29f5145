"""Rows that pass through a block beside its tokens: they ask, and are neither keys nor values."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from .. import catalog
from ..anatomy.sites import Place
from ..errors import VitrewriteError
from ..tracing.leaves import is_helper, is_inserted
from ..tracing.notes import ARITY, HINT, VALUE, WIRED, copied_without, noted
from . import wiring
from .attended import given
from .editor import Editor, join
from .queries import FusedLayer
from .slices import behind


class PlacedError(Exception):
    """Rows cannot pass what goes by where tokens stand."""


def goes_by_place(module: nn.Module) -> bool:
    """Whether a module that a pass put in keeps a fact of the tokens, such as their grid."""
    if not is_inserted(module) or is_helper(module):
        return False
    try:
        facts = catalog.signature(str(module.inserted_by)).reads
    except VitrewriteError:  # a module of a pass that is not installed
        return True
    return any(hasattr(module, fact) for fact in facts)


def passed_of(rows: torch.Tensor) -> torch.Tensor:
    """Stands for what a block makes of rows, until all clauses are through."""
    return torch.empty_like(rows)


@dataclass(frozen=True)
class Passage:
    """The way of rows through a part of a model.

    Attributes:
        core: the call of SDPA that they ask.
        inside: the unit that calls it.
        skipped: calls that change the tokens in number, `x, ... = module(x, ...)`.
        fused: the layer that makes the queries, if it makes keys and values too.
        frozen: whether no gradient flows from rows into the keys and values that they ask.
    """

    editor: Editor
    core: fx.Node
    inside: str
    skipped: Collection[fx.Node]
    fused: FusedLayer | None = None
    frozen: bool = False

    def through(self, unit: str, rows: dict[fx.Node, fx.Node], target: fx.Node) -> fx.Node:
        """What a unit makes of rows in place of tokens.

        Args:
            unit: its path.
            rows: by node of its graph what stands for it.
            target: what it makes of the tokens.

        Raises:
            PlacedError: with what they cannot pass, in words.
        """
        return self.all_through(unit, rows, target)[target]

    def all_through(
        self, unit: str, rows: dict[fx.Node, fx.Node], target: fx.Node
    ) -> dict[fx.Node, fx.Node]:
        """The same on the way to it: by node of tokens what stands for it."""
        made = dict(rows)
        needed = behind(rows) & self._ahead(target)
        for node in list(target.graph.nodes):
            if node in needed and node not in made:
                self._follow(unit, node, made, needed)
        return made

    def _ahead(self, target: fx.Node) -> set[fx.Node]:
        """What a node is made of, but for the keys and values that are asked and their bias."""
        queue, found = [target], {target}
        while queue:
            node = queue.pop()
            sources = self._sources(node)
            queue += [n for n in sources if n not in found]
            found.update(sources)
        return found

    def _sources(self, node: fx.Node) -> list[fx.Node]:
        return [given(node)["query"]] if node is self.core else node.all_input_nodes

    def _follow(
        self, unit: str, node: fx.Node, made: dict[fx.Node, fx.Node], needed: Collection[fx.Node]
    ) -> None:
        """Makes of rows what a node makes of tokens, right behind it."""
        call: Any = node.args[0] if node.args else None
        if node in self.skipped:
            return
        if isinstance(call, fx.Node) and call in self.skipped:
            made[node] = made[call.all_input_nodes[0]]
        elif (
            self.fused is not None
            and node is self.fused.call
            and (queries := self.fused.queries(made[call], needed))
        ):
            made.update(queries)
        elif node.op == "call_module" and self._holds(join(unit, str(node.target))):
            self._enter(unit, node, made, needed)
        elif all(made.get(n, n) is n for n in self._sources(node)):
            made[node] = node  # such as the weights of the tokens
        else:
            self._expect_alike(unit, node)
            with node.graph.inserting_after(node):
                made[node] = node.graph.node_copy(node, lambda n: self._stands_for(node, n, made))
            copied_without(node, made[node], VALUE)
            if node.op == "call_module":
                again = self.editor.again.setdefault(Place(unit, node.name), [])
                again.append(Place(unit, made[node].name))

    def _expect_alike(self, unit: str, node: fx.Node) -> None:
        """Raises PlacedError if a node tells rows by where they stand."""
        path = join(unit, str(node.target))
        if node.op == "call_module" and goes_by_place(self.editor.root.get_submodule(path)):
            raise PlacedError(f"'{path}' goes by where tokens stand")

    def _stands_for(self, node: fx.Node, n: fx.Node, made: dict[fx.Node, fx.Node]) -> fx.Node:
        if n in self._sources(node):
            return made.get(n, n)
        asked = (given(node)[name] for name in ("key", "value")) if node is self.core else ()
        return self._without_gradient(n) if self.frozen and n in asked else n

    def _without_gradient(self, n: fx.Node) -> fx.Node:
        """The same keys or values, detached."""
        if self.inside not in self.editor.stops:
            self.editor.stops.append(self.inside)
        with n.graph.inserting_after(n):
            return n.graph.call_method("detach", (n,))

    def _holds(self, path: str) -> bool:
        return self.inside == path or self.inside.startswith(f"{path}.")

    def _enter(
        self, unit: str, call: fx.Node, made: dict[fx.Node, fx.Node], needed: Collection[fx.Node]
    ) -> None:
        """Takes rows through a unit that is called: as further inputs and one more output."""
        path = join(unit, str(call.target))
        items: list[Any] = [n.args[1] for n in call.users if n in needed] if ARITY.on(call) else []
        index = min(items, default=0)  # what was taken out besides stands behind
        graph = self.editor.graph(path)
        results: Any = next(n for n in graph.nodes if n.op == "output").args[0]
        target = results[index] if isinstance(results, (tuple, list)) else results
        inputs = [n for n in graph.nodes if n.op == "placeholder"]
        read, rows = self._ahead(target), dict[fx.Node, fx.Node]()
        for token, source in zip(inputs, call.args, strict=True):
            known = made.get(source) if isinstance(source, fx.Node) else None
            if token in read and known not in (None, source):
                rows[token] = self._input(graph)
                call.args = (*call.args, known)
        twin = self.through(path, rows, target)
        HINT.put(twin, "asked")
        result = wiring.give(self.editor, path, twin, call)
        made.update({n: result if n.args[1] == index else n for n in call.users})

    def _input(self, graph: fx.Graph) -> fx.Node:
        last = [n for n in graph.nodes if n.op == "placeholder"][-1]
        with graph.inserting_after(last):
            found = graph.placeholder("rows")
        noted(found, {HINT: "rows", WIRED: True})
        return found
