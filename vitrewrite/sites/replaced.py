"""An attention that becomes something else, or goes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from ..anatomy.sites import Linear, Place
from ..editing import stripping, wiring
from ..editing.attended import rows_of
from ..editing.value import Value
from ..tracing.notes import HINT, ORIGIN
from . import windowed
from .heads import HeadsSite

if TYPE_CHECKING:
    from .block import BlockSite
    from .branch import BranchSite


@dataclass(frozen=True, eq=False)
class ReplacedAttention(HeadsSite):
    """Verbs by which a module stands in for an attention, or for all of its branch."""

    @property
    def block(self) -> BlockSite:
        """The block that it is in."""
        raise NotImplementedError

    @property
    def branch(self) -> BranchSite:
        """The branch that it is in."""
        from .branch import BranchSite

        branches = self.block.block.branches
        found = next((b for b in branches if b.role.endswith(".attn_branch")), None)
        if found is None:
            raise self.unfit("no branch of its block is the attention alone")
        return BranchSite(self.context, found)

    @property
    def windows(self) -> tuple[int, int] | None:
        """Height and width of the windows that its block cuts from a map, if it does.

        Raises:
            RewriteError: VR410 if that cannot be told.
        """
        return windowed.size(self)

    @property
    def bare(self) -> bool:
        """Whether its branch adds nothing where the attention yields zeros.

        Not where a clause put something into the branch, or a norm is behind the attention. At
        lowering the module that stands at it is none of that.
        """
        return windowed.bare(self)

    def expect_whole(self) -> None:
        """Raises VR410 if tokens joined the prefix, or later if a gate lets some tokens skip it."""
        joined = self.tokens.prefix - self.context.anatomy.stream.prefix_tokens
        if joined:
            raise self.unfit(f"{joined} tokens joined the prefix, which only attention sees")
        self.at_end(lambda: windowed.expect_ungated(self))

    def become(
        self,
        module: nn.Module,
        *values: Value,
        keep: bool = True,
        beside: bool = False,
        layers: Sequence[str] = ("q", "k", "v", "proj"),
        whole: bool = False,
    ) -> None:
        """`y = module(x, *tensors, *values)` instead of `y = attention(x)`.

        The attention keeps its parameters under their names, and its own forward hands them in:
        weight and bias of the `layers`, [rows, channels] and [rows], rows of a fused layer too, or
        None for a bias that is not there. The module owns no copy.

        Args:
            module: yields what x is a changed form of: `changes = (0,)`.
            values: what it is given besides.
            keep: if not, the attention is taken out, and it is `module(query, key, value, *values)`
                with what the layers of q, k and v read.
            beside: whether the attention runs still: `y = module(x, attention(x), *tensors,
                *values)`, with `changes = (1,)`. Other clauses at the attention stay what they are.
            layers: whose tensors the module is given. Where these are not all four, and it does
                not run still, the attention keeps them alone, and rows of a fused layer alone.
            whole: where it attends within windows: x and y are the map that they are cut from, and
                what they are put back to.

        Raises:
            RewriteError: VR410 if it is no self-attention in a module of its own, VR412 if another
                clause is about what the attention does, which it does no more.
        """
        given = [getattr(self.attention, name) for name in layers]
        if beside and whole:
            windowed.beside(self, given, module, values)
            return
        if keep or beside:
            alone = not beside and len(given) < len(self._layers)
            then = functools.partial(self._settled, whole=whole, alone=alone)
            self._keep(given, module, values, beside=beside, then=then)
            return
        unit, call = self._call
        inputs: list[Any] = [call.args[i] for i in self._inputs]
        inputs += [value.read(self.editor, unit) for value in values]
        hint = str(HINT.drop(call) or self.path.rpartition(".")[2])
        owner, _, name = self.path.rpartition(".")
        new = f"{name}_{self._stem}"
        made = self.put(module, unit, inputs, (hint,), owner=owner, name=new)
        call.replace_all_uses_with(made[0])
        call.graph.erase_node(call)
        self.editor.take_out(self.path, self.clause)
        wiring.release(self.editor, unit)

    def _replace(self, made: Place, y: Place, then: Callable[[], None] | None) -> None:
        core = self._found()
        if core is not None and (ORIGIN.on(core) or self.observed or rows_of(core)):
            raise self._lost(str(ORIGIN.get(core) or "reads its weights"))
        super()._replace(made, y, then)

    def _settled(self, *, whole: bool, alone: bool) -> None:
        """Once the module is read in place of what it yielded: it is given the map, and strips."""
        if whole:
            self._given_whole()
        if alone:
            stripping.strip(self.editor, self._unit, self.clause)

    def _given_whole(self) -> None:
        windowed.given_whole(self)

    def leave_out(self, *, passing: bool = False) -> None:
        """Its branch, `x + f(x)`, becomes `x`; the modules of the branch go.

        At lowering the module that stands at it goes too.

        Args:
            passing: whether the branch adds what the attention reads instead; only that goes.

        Raises:
            RewriteError: VR410 if another clause put something into the branch.
        """
        if self.context.insertion is not None:
            self.bypass(self.insertion.path)
            self.remove(self.insertion)
            self.editor.insertions.remove(self.insertion)
        if passing:
            windowed.passed(self)
        else:
            self.branch.leave_out()

    @property
    def _layers(self) -> tuple[Linear | None, ...]:
        """Its four layers."""
        found = self.attention
        return found.q, found.k, found.v, found.proj

    @property
    def _own_unit(self) -> str:
        if self.path != self._unit:
            raise self.unfit("it is no module of its own")
        if len(wiring.caller(self.editor, self.path)[1]) > 1:
            raise self.unfit(f"'{self.path}' runs several times")
        return self._unit

    @property
    def _call(self) -> tuple[str, fx.Node]:
        """The unit that calls the attention, and the call."""
        if self.path != self._unit:
            raise self.unfit("it is no module of its own")
        unit, calls = wiring.caller(self.editor, self.path)
        if len(calls) > 1:
            raise self.unfit(f"'{self.path}' runs {len(calls)} times")
        return unit, wiring.calls_of(self.editor.graph(unit), str(calls[0].target))[0]

    @property
    def _inputs(self) -> list[int]:
        """Which inputs of its unit the layers of q, k and v read."""
        nodes = [n for n in self.editor.graph(self._unit).nodes if n.op == "placeholder"]
        found = []
        for layer in (self.attention.q, self.attention.k, self.attention.v):
            source = None if layer is None else self.editor.node(layer.call).args[0]
            if source not in nodes:
                raise self.unfit("its q, k and v are not made of its inputs as they are")
            found.append(nodes.index(source))
        return found
