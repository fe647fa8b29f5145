"""Verbs of heads: the layer that makes the classes, and what it reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx, nn

from ..anatomy.sites import Place
from ..anatomy.twice import rows_beside
from ..editing import branches
from ..editing.clause import ClauseRef
from ..editing.editor import join
from ..editing.sweeping import forget
from ..editing.value import Value
from ..tracing.about import about, tell
from ..tracing.nodes import take_entry
from ..tracing.notes import HELD, HINT
from ..tracing.pre_logits import NOT_READ
from .block import BlockSite
from .linear import LinearSite
from .pooling import kinds


@dataclass(frozen=True, eq=False)
class HeadSite(LinearSite):
    """The linear layer that makes the classes; all that holds of such layers holds of it.

    A model with several heads, as a distilled one, has a site for each: what becomes of their
    results, such as the mean, stays as it is.
    """

    @property
    def blocks(self) -> tuple[BlockSite, ...]:
        """All blocks in front of it, whose points are what a new head may read.

        Raises:
            RewriteError: VR410 if an earlier rewrite took rows through them beside the tokens.
        """
        if beside := rows_beside(self.context.anatomy, self.editor.root):
            raise self.unfit(
                f"by an earlier rewrite rows of {beside[0]} pass the layers of '{beside[1]}' too"
            )
        return tuple(BlockSite(self.context, block) for block in self.context.anatomy.blocks)

    @property
    def pooling(self) -> tuple[str, ...]:
        """How the model makes what the layer reads of its tokens; empty where that is not known.

        Of `token`, `mean`, `attention` and `maximum`. Whether merged tokens weigh in it as the
        patches that they stand for is said by `state`.
        """
        return kinds(self.context.anatomy)

    @property
    def like(self) -> torch.Tensor:
        """The weight of the layer, or a tensor near where it was."""
        there = self.editor.taken(self._layer) is None
        return super().like if there else self._near

    @property
    def features(self) -> Value:
        """What the layer reads, [batch, in_features], for a new head that is to take it detached.

        Such a head reads it as a tap, and is put in with `pooled=False`.

        Raises:
            RewriteError: as those of `replace`.
        """
        place = self._alone("given another input", beside=True)
        x = self.editor.node(place).args[0]
        assert isinstance(x, fx.Node)
        return Value(Place(place.unit, x.name))

    # -- verbs ----------------------------------------------------------------------------------

    def replace(self, module: nn.Module, *taps: Value, pooled: bool = True) -> None:
        """`logits = module(x, *taps)` instead of `logits = layer(x)`, under the layer's name.

        `train head` and `excluding head` mean the new one from then on. The layer goes, and so do
        its tensors; without x all that only x was made of goes, too, such as a last norm.

        Args:
            module: the new head; how many classes it yields is the number of the model. In
                training it may yield more, `(logits, *more)`, for a procedure's losses.
            taps: values that are made anywhere in front of it.
            pooled: whether it reads x, [batch, in_features], the input of the layer.

        Raises:
            RewriteError: VR401 if another clause replaces the head, feeds it, or stands at it,
                VR410 for a layer that classifies no image, or is no module of one place.
        """
        place = self._alone("replaced")
        names = {*self.editor.root.state_dict()}
        given = [tap.read(self.editor, place.unit) for tap in taps]
        call = self.editor.node(place)
        x = call.args[0]
        assert isinstance(x, fx.Node)
        owner, _, name = self._layer.rpartition(".")
        holder = self.editor.root.get_submodule(owner)
        order = [*holder._modules]
        self.editor.take_out(self._layer, self.clause)
        args = [*([x] if pooled else []), *given]
        hint = str(HINT.drop(call) or name)
        (made,) = self.put(
            module, place.unit, args, (hint,), owner=owner, name=name, owners=(self._layer,)
        )
        for each in order[order.index(name) + 1 :]:
            holder._modules[each] = holder._modules.pop(each)
        self._stand_for(call, made, place)
        if not pooled and not self._reads(x):
            self._forget(place.unit, x)
            if "pre_logits" in (told := about(self.editor.root).helpers):
                tell(self.editor.root, helpers={**told, "pre_logits": ("", NOT_READ)})
        self.editor.left_out(names, self.clause)

    def feed(
        self, module: nn.Module, *taps: Value, pooled: bool = True, last: bool = False
    ) -> None:
        """`logits = layer(module(x, *taps))`: the layer stays, and reads something else.

        Args:
            module: yields what has the shape of x, [batch, in_features].
            taps: values that are made anywhere in front of the layer.
            pooled: whether the module reads x; if not, what only x was made of goes.
            last: whether that goes once all clauses are through, as for taps that are rows which
                pass what tokens pass.

        Raises:
            RewriteError: VR401 if another clause replaces the head or feeds it, VR410 for a layer
                that classifies no image, or is no module of one place.
        """
        place = self._alone("fed", beside=True)
        names = {*self.editor.root.state_dict()}
        given = [tap.read(self.editor, place.unit) for tap in taps]
        call = self.editor.node(place)
        x = call.args[0]
        assert isinstance(x, fx.Node)
        readers = [call, *branches.chain(self.editor, place.unit, call)]
        args = [*([x] if pooled else []), *given]
        (made,) = self.put(
            module,
            place.unit,
            args,
            (str(HINT.get(x) or "x"),),
            name=f"{self._name}_{self._stem}",
            owners=self._owners,
        )
        take_entry(made, call)
        for reader in readers:
            reader.replace_input_with(x, made)
        self.editor.fed[self._layer] = self.clause
        if last and not pooled:
            HELD.put(x, True)
            held = Place(place.unit, x.name)
            self.at_end(lambda: self.at_end(lambda: self._let_go(held, names)))
            return
        if not pooled:
            self._forget(place.unit, x)
        self.editor.left_out(names, self.clause)

    # -- what stands there ----------------------------------------------------------------------

    def _alone(self, how: str, *, beside: bool = False) -> Place:
        """The one call of the layer.

        Args:
            how: what is to become of the layer, in words.
            beside: whether what other clauses put at the layer may stay there.
        """
        if self.context.anatomy.decoder is not None:
            raise self.unfit("it classifies the queries of a decoder, not an image")
        self._check_inside()
        if len(self._calls) > 1 or self.editor.holders(self._owner) > 1:
            raise self.unfit("the layer runs in more than one place")
        (place,) = self._calls
        call = self.editor.node(place)
        if call.op != "call_module" or join(place.unit, str(call.target)) != self._layer:
            raise self.unfit("the layer is no module of its own")
        if (other := self.editor.fed.get(self._layer)) is not None:
            raise self.clause.without(self.role, other, "given another input")
        if not beside and (other := self._standing(place, call)) is not None:
            raise self.clause.error(
                "VR401",
                f"'{self.role}' is to be {how}, and another clause adapts it",
                notes=[f"the other clause: {other.origin}"],
                suggestion=f"leave '{self.role}' out there",
            )
        return place

    def _standing(self, place: Place, call: fx.Node) -> ClauseRef | None:
        """A clause that put something at the layer."""
        targets = [str(n.target) for n in branches.chain(self.editor, place.unit, call)]
        paths = {join(place.unit, target) for target in targets}
        found = (i.site.clause for i in self.editor.insertions if i.path in paths)
        if paths and (first := next(found, None)) is None:
            raise self.unfit("an earlier rewrite put something at the layer")
        return first if paths else None

    def _stand_for(self, call: fx.Node, made: fx.Node, place: Place) -> None:
        """What read the layer's result reads another."""
        take_entry(made, call)
        call.replace_all_uses_with(made)
        call.graph.erase_node(call)
        self.editor.moved[place] = Place(place.unit, made.name)

    def _reads(self, x: fx.Node) -> bool:
        """Whether what was put in last is given x by itself, without gradient."""
        (call,) = (n for _, n in self.calls_of(self.editor.insertions[-1]))
        return any(n is x or x in n.all_input_nodes for n in call.all_input_nodes)

    def _let_go(self, held: Place, names: set[str]) -> None:
        """Takes out what the layer read, which nothing reads any more."""
        place = self.editor.where(held)
        x = self.editor.node(place)
        HELD.drop(x)
        self._forget(place.unit, x)
        self.editor.left_out(names, self.clause)

    def _forget(self, unit: str, x: fx.Node) -> None:
        """Takes out what only the input of the layer was made of."""
        other = None if x.users else forget(self.editor, unit, x, self.clause)
        if other is not None:
            raise self.clause.error(
                "VR401",
                f"'{self.role}' does not read any more what another clause changes",
                notes=[f"the other clause: {other.site.clause.origin}"],
                suggestion="leave one of them out",
            )
