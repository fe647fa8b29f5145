"""Verbs of branches: what a residual sum adds to its stream."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import fx, nn

from ..anatomy.sites import Branch, Place
from ..editing import branches, narrowing, wiring
from ..editing.editor import after, join
from ..editing.slices import ahead, behind, erase_unread
from ..editing.value import Value, shape_of
from ..tracing.leaves import changed_by, is_inserted
from ..tracing.notes import HINT, VALUE
from ..tracing.template import eliminate_dead_code
from ..tracing.unit import Unit
from . import gridded
from .gridded import Grid
from .routing import RoutedSite
from .rows import Gated

if TYPE_CHECKING:
    from .attention import AttentionSite
    from .block import BlockSite


@dataclass(frozen=True, eq=False)
class BranchSite(RoutedSite):
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

    @property
    def block(self) -> BlockSite:
        """The block that it is in."""
        from .block import BlockSite

        blocks = self.context.anatomy.blocks
        return BlockSite(self.context, next(b for b in blocks if self.branch in b.branches))

    @property
    def ends_in_norm(self) -> bool:
        """Whether what it adds comes out of a norm, as in Swin V2."""
        return self.branch.last_norm is not None

    @property
    def grid(self) -> Grid:
        """The patches of its stream, while the model runs; see `gridded`."""
        return gridded.grid(self)

    @property
    def patches(self) -> tuple[int, int]:
        """How many patches there are down and across, at the size that the model was captured with.

        For checks and costs: what a pass makes has to fit other sizes too; see `grid`.
        """
        return gridded.patches(self)

    @property
    def _position(self) -> int:
        """Of its stream: in front of the block, or in its middle."""
        block = self.block.block
        return 2 * block.index + (block.mid is not None and self.branch.sum == block.output)

    # -- verbs ----------------------------------------------------------------------------------

    def wrap(self, module: nn.Module, *, inside: bool = False, before_norm: bool = False) -> None:
        """`x + f(x)` becomes `x + module(f(x))`.

        Args:
            module: what is put in.
            inside: `x + drop(f(x))` becomes `x + drop(module(f(x)))`, with the branch's own drop
                path; it stands under all that is around f, behind what is inside already.
            before_norm: with `inside`, where f ends in a norm: f is what that norm reads.
        """
        if not inside:
            self._put(module, self._sum.args[self.branch.index])
            return
        unit, reader, index = self._innermost(before_norm)
        y = reader.args[index]
        assert isinstance(y, fx.Node)
        reader.update_arg(index, self._called(module, unit, [y], 0))
        self._stacked("inside")

    def beside(
        self, module: nn.Module, *values: Value, reads: str = "stream", drop: bool = False
    ) -> None:
        """`x + f(x)` becomes `x + module(x, f(x), *values)`: x is the stream as f reads it.

        What stands there follows each other in the order of the clauses.

        Args:
            module: what is put in.
            values: what it is given besides.
            reads: `stream`, or `norm` for x as the norm in front of f yields it.
            drop: whether what is added is dropped by sample as f is, with a draw of its own. Then
                `x + drop(f(x))` becomes `x + (drop(f(x)) + drop(module(x, *values)))`.

        Raises:
            RewriteError: VR410 if f is not made of the stream that it is added to, or if no norm
                stands in front of it.
        """
        x, y = self._read(reads), self._sum.args[self.branch.index]
        given = [value.read(self.editor, self.path) for value in values]
        if drop:
            self._add(self._called(module, self.path, [x, *given], None))
        else:
            self._put(module, x, y, *given, changed=1)

    def drop(self) -> None:
        """`x + f(x)` becomes `x`, and the modules of f go; at lowering, what was put in goes.

        Raises:
            RewriteError: VR410 if another clause put something into f.
        """
        if self.context.insertion is not None:
            super().drop()
        else:
            self.leave_out()

    def leave_out(self) -> None:
        """`x + f(x)` becomes `x`, and the modules of f go; at lowering what is in them, too.

        Raises:
            RewriteError: VR410 if another clause put something into f.
        """
        total, unit = self._sum, self.path
        stream, y = total.args[1 - self.branch.index], total.args[self.branch.index]
        assert isinstance(stream, fx.Node)
        assert isinstance(y, fx.Node)
        called = {str(n.target) for n in total.graph.nodes if n.op == "call_module"}
        HINT.put(stream, HINT.get(stream) or HINT.get(total))
        total.replace_all_uses_with(stream)
        self.editor.moved[self.branch.sum] = Place(unit, stream.name)
        self.editor.ended[self.branch.sum] = self.clause
        total.graph.erase_node(total)
        erase_unread(y)
        eliminate_dead_code(stream.graph)
        for path in sorted(join(unit, target) for target in called):
            if next(wiring.calls(self.editor, path), None) is None:
                self._forget(path)

    def _gate(self, gate: Value) -> None:
        """`x + f(x)` becomes `x + gate * f(x)`."""
        total, number = self._sum, gate.read(self.editor, self.path)
        y = total.args[self.branch.index]
        assert isinstance(y, fx.Node)
        hint = str(HINT.get(y) or "y")
        (made,) = self._call(self.path, Gated(), "gated", (y, number), (hint,))
        total.update_arg(self.branch.index, made)

    # -- nodes ----------------------------------------------------------------------------------

    @property
    def _start(self) -> tuple[str, fx.Node]:
        return self.path, self._read("stream")

    @property
    def _delta_owner(self) -> str:
        return self.branch.owner

    @property
    def _attending(self) -> AttentionSite | None:
        block = self.block
        if block.block.attn is None:
            return None
        site = block.attn
        unit, node = (core := self.editor.where(site.attention.core)).unit, core.node
        y = self._sum.args[self.branch.index]
        assert isinstance(y, fx.Node)
        inside = ahead([y]) & behind([self._stream])
        calls = (join(self.path, str(n.target)) for n in inside if n.op == "call_module")
        here = unit == self.path and any(n.name == node for n in inside)
        return site if here or any(f"{unit}.".startswith(f"{c}.") for c in calls) else None

    @property
    def _sum(self) -> fx.Node:
        """The node that adds, whatever was put behind it."""
        nodes: list[fx.Node] = list(self.editor.graph(self.path).nodes)
        found = next((n for n in nodes if n.name == self.branch.sum.node), None)
        if found is None:
            raise self.gone(self.editor.ended[self.branch.sum])
        return found

    @property
    def _stream(self) -> fx.Node:
        node = self._sum.args[1 - self.branch.index]
        assert isinstance(node, fx.Node)
        return node

    def _read(self, what: str) -> fx.Node:
        """What a module beside f is given."""
        if what == "stream":
            if not self.branch.starts:
                raise self.unfit("it is not made of the stream that it is added to")
            return self._stream
        if self.branch.first_norm is None:
            raise self.unfit("no norm reads the stream in front of it")
        place = self.editor.where(self.branch.first_norm)
        norm = self.editor.node(place)
        if shape_of(norm) != shape_of(self._stream):
            raise self.unfit("the norm in front of it yields another shape than the branch adds")
        *_, last = (norm, *branches.chain(self.editor, place.unit, norm))
        return wiring.read(self.editor, Place(place.unit, last.name), self.path)

    def _called(
        self, module: nn.Module, unit: str, args: Sequence[fx.Node], changed: int | None
    ) -> fx.Node:
        """What a module makes of nodes; it changes one of them, or makes something new."""
        hint = "added" if changed is None else HINT.get(args[changed])
        hint = str(hint or self.role.rpartition(".")[2])
        (made,) = self.put(
            module,
            unit,
            args,
            (hint,),
            owners=(self.branch.owner,),
            changed=() if changed is None else (changed,),
            around=True,
        )
        return made

    def _put(self, module: nn.Module, *given: object, changed: int = 0) -> None:
        """Calls a module on what is added last, which it changes, and on others."""
        args = [node for node in given if isinstance(node, fx.Node)]
        total = self._sum
        total.update_arg(self.branch.index, self._called(module, self.path, args, changed))
        self._stacked()

    def _add(self, made: fx.Node) -> None:
        """Adds a value to the branch, behind a call of the branch's drop path."""
        total, drop = self._sum, self._drop_path
        y = total.args[self.branch.index]
        assert isinstance(y, fx.Node)
        with after(total.graph, [made, y]):
            term = made
            if drop is not None:
                term = total.graph.call_module(str(drop.target), (made,))
            plus = total.graph.call_function(operator.add, (y, term))
        for node in (made, term, plus):
            VALUE.put(node, VALUE.get(y))
        total.update_arg(self.branch.index, plus)
        self._stacked()

    def _stacked(self, where: str = "") -> None:
        """Notes where the last module was put, for the order of clauses."""
        place = Place(self.path, f"{self.branch.sum.node} {self.branch.index} {where}".rstrip())
        self.editor.stacks.setdefault(place, []).append(self.editor.insertions[-1])

    def _around(self) -> Iterator[tuple[fx.Node, int]]:
        """From the sum inward, the nodes that passes put around f, each with the argument f is."""
        reader, index = self._sum, self.branch.index
        while True:
            yield reader, index
            node = reader.args[index]
            if not isinstance(node, fx.Node):
                return
            y = branches.changed(self.editor, self.path, node)
            if y is None and self._addend(node) is not None:
                y = node.args[0]
            if y is None:
                return
            reader, index = node, node.args.index(y)

    def _addend(self, node: fx.Node) -> fx.Node | None:
        """The call of an inserted module whose result a sum adds to f, through its drop path."""
        term = node.args[1] if node.target is operator.add else None
        while isinstance(term, fx.Node) and self._passes(term):
            term = term.args[0]
        if not isinstance(term, fx.Node) or term.op != "call_module":
            return None
        module = self._module(term)
        return term if is_inserted(module) and not changed_by(module) else None

    def _module(self, call: fx.Node) -> nn.Module:
        return self.editor.unit(self.path).get_submodule(str(call.target))

    def _passes(self, node: fx.Node) -> bool:
        """Whether a call yields in evaluation what it is given, as that of a drop path."""
        if node.op != "call_module":
            return False
        module = self._module(node)
        if not isinstance(module, Unit) or module.template is None:
            return isinstance(module, nn.Identity)
        nodes = list(module.template.graph.nodes)
        return bool(nodes[-1].args[0] is nodes[0])

    @property
    def _drop_path(self) -> fx.Node | None:
        """The call of the branch's drop path."""
        *_, (reader, index) = self._around()
        node = reader.args[index]
        return node if isinstance(node, fx.Node) and self._passes(node) else None

    def _innermost(self, before_norm: bool) -> tuple[str, fx.Node, int]:
        """Who reads what f yields, in front of the drop path or of the norm at its end."""
        if before_norm and self.branch.last_norm is not None:
            place = self.editor.where(self.branch.last_norm)
            return place.unit, self.editor.node(place), 0
        if (drop := self._drop_path) is not None:
            return self.path, drop, 0
        inside = Place(self.path, f"{self.branch.sum.node} {self.branch.index} inside")
        paths = {i.path for i in self.editor.stacks.get(inside, ())}
        for reader, index in self._around():
            y = reader.args[index]
            assert isinstance(y, fx.Node)
            if join(self.path, str(y.target)) in paths:
                break
        return self.path, reader, index

    def _bypass(self, unit: str, node: fx.Node, changes: Sequence[int | None]) -> None:
        """A module whose result is added goes with the sum."""
        total = next((n for n in node.graph.nodes if self._addend(n) is node), None)
        if total is None:
            super()._bypass(unit, node, changes)
            return
        y, term = total.args
        HINT.put(y, HINT.get(y) or HINT.get(total))
        self.editor.passed(Place(unit, total.name), Place(unit, y.name))
        total.replace_all_uses_with(y)
        for gone in (total, term, node):
            if gone in node.graph.nodes:
                node.graph.erase_node(gone)

    def _standing(self) -> Iterator[nn.Module]:
        """What was put at the branch, the last one first."""
        for reader, index in self._around():
            y = reader.args[index]
            found = self._addend(y) if isinstance(y, fx.Node) else None
            if isinstance(y, fx.Node) and y.op == "call_module":
                found = y
            if found is not None:
                yield self._module(found)
        inside: object = self._drop_path.args[0] if self._drop_path else None
        while isinstance(inside, fx.Node) and inside.op == "call_module":
            yield self._module(inside)
            inside = branches.changed(self.editor, self.path, inside)

    def refuse_twice(self) -> None:
        """Raises VR402 if the pass is at the branch already."""
        if any(getattr(m, "inserted_by", None) == self.pass_name for m in self._standing()):
            raise self.twice

    def _forget(self, path: str) -> None:
        """Takes a module that nothing calls any more out of the tree."""
        inside = (i for i in self.editor.insertions if f"{i.path}.".startswith(f"{path}."))
        if self.context.insertion is None and (found := next(inside, None)) is not None:
            raise self.unfit(f"'{found.site.clause.text}' put something into it")
        narrowing.take_out(self.editor, path, self.clause)
