"""Verbs of one layer of a query decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import fx

from ..anatomy.decoder import Addend, DecoderLayer, Prediction
from ..anatomy.sites import Place
from ..editing import slices, wiring
from ..editing.editor import join, relative
from ..editing.value import Value
from ..tracing.unit import Unit
from .attention import AttentionSite
from .base import BoundSite

if TYPE_CHECKING:
    from .decoder import DecoderSite
    from .level import LevelSite


@dataclass(frozen=True, eq=False)
class LayerSite(BoundSite):
    """One layer of a decoder: queries attend to a level, then to each other."""

    layer: DecoderLayer
    decoder: DecoderSite

    @property
    def role(self) -> str:
        """The site in words."""
        return self.layer.role

    @property
    def path(self) -> str:
        """The module that the layer is."""
        if self.layer.unit is None:
            raise self.unfit("it is no module of its own")
        return self.layer.unit

    @property
    def whole(self) -> bool:
        """Whether it attends to all of its level."""
        return self.layer.whole

    @property
    def added(self) -> bool:
        """Whether a clause put the layer in."""
        return any(i.path == self.path for i in self.editor.insertions)

    @property
    def replacing(self) -> tuple[str, str] | None:
        """The pass that replaced its cross-attention, and its clause or module."""
        if self.layer.cross_attn.form != "inserted":
            return None
        place = self.layer.cross_attn.core
        target = next(n.target for n in self.editor.graph(place.unit).nodes if n.name == place.node)
        path = join(place.unit, str(target))
        clauses = (i.site.clause.origin for i in self.editor.insertions if i.path == path)
        name = str(self.editor.root.get_submodule(path).inserted_by)
        return name, next(clauses, f"'{path}' of the model")

    @property
    def level(self) -> LevelSite:
        """What it attends to."""
        return self.decoder.levels[self.layer.level]

    @property
    def cross_attn(self) -> AttentionSite:
        """Its attention to the level."""
        return AttentionSite(self.context, self.layer.cross_attn)

    @property
    def masks(self) -> Value:
        """Logits of the masks predicted before it, [batch, queries, height, width]."""
        inner = self._prediction.mask
        unit = self.decoder.path
        if inner.unit == unit:
            return Value(inner)
        node = self.editor.node(inner)
        target = relative(inner.unit, unit)
        sources = slices.ahead(self.call.all_input_nodes) & slices.behind([self.input])
        call = next(n for n in sources if n.op == "call_module" and n.target == target)
        return Value(Place(unit, wiring.give(self.editor, inner.unit, node, call).name))

    @property
    def _prediction(self) -> Prediction:
        for found in self.decoder.decoder.predictions:
            if found.masks_layer == self.layer.index:
                return found
        raise self.unfit("no mask is predicted before it")

    # -- verbs ----------------------------------------------------------------------------------

    def give_positions(self, value: Value, *, cross: bool = True) -> None:
        """Positional queries of its self-attention, and of its cross-attention unless told not."""
        for addend in (self.layer.cross_position if cross else None, self.layer.self_position):
            if addend is not None:
                self._replace_addend(addend, value)
        wiring.release(self.editor, self.path)

    def _replace_addend(self, addend: Addend, value: Value) -> None:
        place = self.editor.where(addend.total)
        total = self.editor.node(place)
        shown: Any = total.args[addend.index]
        source: fx.Node = shown
        while source.op != "placeholder" and Place(place.unit, source.name) != addend.value:
            (source,) = source.all_input_nodes
        new = value.read(self.editor, place.unit)
        made = slices.copy([shown], {source: new}, total)
        total.update_arg(addend.index, made[shown])

    def attend(self, keys: Value, positions: Value) -> None:
        """Attends to other keys, [keys, batch, channels], instead of its level; without a mask."""
        unit = self.decoder.path
        old = self.level.features, self.level.position
        given = {
            was.read(self.editor, unit): now.read(self.editor, unit)
            for was, now in zip(old, (keys, positions), strict=True)
        }
        call = self.call
        call.args = tuple(given.get(a, a) if isinstance(a, fx.Node) else a for a in call.args)
        self.cross_attn.unmask()
        wiring.release(self.editor, self.path)

    # -- nodes of the unit that calls the layers ------------------------------------------------

    @property
    def call(self) -> fx.Node:
        """The node that runs the layer."""
        target = relative(self.path, self.decoder.path)
        nodes = self.editor.graph(self.decoder.path).nodes
        found: fx.Node = next(n for n in nodes if n.op == "call_module" and n.target == target)
        return found

    @property
    def input(self) -> fx.Node:
        """The queries that it is given."""
        return wiring.read(self.editor, self.layer.input, self.decoder.path)

    @property
    def output(self) -> fx.Node:
        """The queries that it yields."""
        return wiring.read(self.editor, self.layer.output, self.decoder.path)

    @property
    def next_call(self) -> fx.Node | None:
        """The node that runs the layer behind it."""
        calls = [n for n in slices.behind([self.call]) if self._is_layer(n) and n is not self.call]
        order = {node: i for i, node in enumerate(self.call.graph.nodes)}
        return min(calls, key=order.__getitem__, default=None)

    def _is_layer(self, node: fx.Node) -> bool:
        inserted = [i for i in self.editor.insertions if isinstance(i.module, Unit)]
        units = [i.path for i in inserted if i.unit == self.decoder.path]
        units += [layer.unit for layer in self.decoder.decoder.layers if layer.unit]
        targets = {relative(u, self.decoder.path) for u in units}
        return node.op == "call_module" and node.target in targets
