"""Verbs of branches: what a residual sum adds to its stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx, nn

from ..anatomy.sites import Branch, Place
from ..editing import branches, wiring
from ..editing.editor import join
from ..tracing.notes import HINT
from ..tracing.template import eliminate_dead_code
from .base import BoundSite


@dataclass(frozen=True, eq=False)
class BranchSite(BoundSite):
    """One branch f of a block, `x + f(x)`: all of it, layer scale and drop path included."""

    branch: Branch

    @property
    def role(self) -> str:
        """The site in words."""
        return self.branch.role

    @property
    def path(self) -> str:
        """The module that adds it to the stream."""
        return self.branch.sum.unit

    @property
    def dim(self) -> int:
        """Channels of the stream."""
        return self.branch.dim

    @property
    def axis(self) -> int:
        """The axis of the channels: -1, or 1 for maps [batch, channels, height, width]."""
        return self.branch.axis

    # -- verbs ----------------------------------------------------------------------------------

    def wrap(self, module: nn.Module) -> None:
        """`x + f(x)` becomes `x + module(f(x))`."""
        self._put(module, self._sum.args[self.branch.index])

    def beside(self, module: nn.Module) -> None:
        """`x + f(x)` becomes `x + module(x, f(x))`: x is the stream as it is when f reads it.

        What stands there follows each other in the order of the clauses.

        Raises:
            RewriteError: VR410 if f is not made of the stream that it is added to.
        """
        if not self.branch.starts:
            raise self.unfit("it is not made of the stream that it is added to")
        args = self._sum.args
        self._put(module, args[1 - self.branch.index], args[self.branch.index])

    def drop(self) -> None:
        """`x + f(x)` becomes `x`, and the modules of f go; at lowering, what was put in goes.

        Raises:
            RewriteError: VR410 if another clause put something into f.
        """
        if self.context.insertion is not None:
            super().drop()
            return
        total, unit = self._sum, self.path
        stream = total.args[1 - self.branch.index]
        assert isinstance(stream, fx.Node)
        called = {str(n.target) for n in total.graph.nodes if n.op == "call_module"}
        HINT.put(stream, HINT.get(stream) or HINT.get(total))
        total.replace_all_uses_with(stream)
        self.editor.moved[self.branch.sum] = Place(unit, stream.name)
        self.editor.ended[self.branch.sum] = self.clause
        total.graph.erase_node(total)
        eliminate_dead_code(stream.graph)
        for path in sorted(join(unit, target) for target in called):
            if next(wiring.calls(self.editor, path), None) is None:
                self._forget(path)

    # -- nodes ----------------------------------------------------------------------------------

    @property
    def _sum(self) -> fx.Node:
        """The node that adds, whatever was put behind it."""
        nodes: list[fx.Node] = list(self.editor.graph(self.path).nodes)
        found = next((n for n in nodes if n.name == self.branch.sum.node), None)
        if found is None:
            raise self.gone(self.editor.ended[self.branch.sum])
        return found

    def _put(self, module: nn.Module, *given: object) -> None:
        """Calls a module with what is added last, which it changes."""
        args = [node for node in given if isinstance(node, fx.Node)]
        total, y = self._sum, args[-1]
        hint = str(HINT.get(y) or self.role.rpartition(".")[2])
        (made,) = self.put(
            module, self.path, args, (hint,), owners=(self.branch.owner,), changed=(len(args) - 1,)
        )
        total.update_arg(self.branch.index, made)
        place = Place(self.path, f"{self.branch.sum.node} {self.branch.index}")
        self.editor.stacks.setdefault(place, []).append(self.editor.insertions[-1])

    def _standing(self) -> Iterator[nn.Module]:
        """What was put at the branch, the last one first."""
        node: object = self._sum.args[self.branch.index]
        while isinstance(node, fx.Node) and node.op == "call_module":
            yield self.editor.unit(self.path).get_submodule(str(node.target))
            node = branches.changed(self.editor, self.path, node)

    def refuse_twice(self) -> None:
        """Raises VR402 if the pass is at the branch already."""
        if any(getattr(m, "inserted_by", None) == self.pass_name for m in self._standing()):
            raise self.twice

    def _forget(self, path: str) -> None:
        """Takes a module that nothing calls any more out of the tree."""
        inside = (i for i in self.editor.insertions if f"{i.path}.".startswith(f"{path}."))
        if (found := next(inside, None)) is not None:
            raise self.unfit(f"'{found.site.clause.text}' put something into it")
        self.editor.take_out(path, self.clause)
