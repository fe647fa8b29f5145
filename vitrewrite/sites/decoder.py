"""Verbs of query decoders: their layers, the levels that these attend to, what is predicted."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import fx, nn

from ..anatomy.decoder import Decoder
from ..anatomy.sites import Place
from ..editing import slices
from ..editing.editor import Insertion, join, relative
from ..editing.value import Value
from ..tracing.notes import HINT, ORIGIN, VALUE, copied_without
from ..tracing.operators import is_random
from .base import BoundSite
from .layer import LayerSite
from .level import LevelSite

_T = TypeVar("_T")
_COMPARISONS = (operator.lt, operator.le, operator.gt, operator.ge, torch.lt, torch.gt)


@dataclass(frozen=True, eq=False)
class DecoderSite(BoundSite):
    """Layers whose queries read feature maps of several levels; predictions between them."""

    decoder: Decoder

    @property
    def role(self) -> str:
        """The site in words."""
        return self.decoder.role

    @property
    def path(self) -> str:
        """The unit that calls the layers."""
        if len(self.decoder.layers) == 1:
            raise self.unfit("it has one layer only")
        if self.decoder.unit is None:
            raise self.unfit("its layers are no modules of their own")
        return self.decoder.unit

    @property
    def dim(self) -> int:
        """Channels of the queries."""
        return self.decoder.queries.dim

    @property
    def layers(self) -> tuple[LayerSite, ...]:
        """The layers in order."""
        return tuple(LayerSite(self.context, layer, self) for layer in self.decoder.layers)

    @property
    def levels(self) -> tuple[LevelSite, ...]:
        """The levels, in the order in which layers attend to them."""
        return tuple(LevelSite(self.context, level, self) for level in self.decoder.levels)

    @property
    def queries(self) -> int:
        """How many queries there are."""
        return self.decoder.queries.count

    @property
    def positions(self) -> Value:
        """The positional queries that the first layer is given, [queries, batch, channels]."""
        addend = self.decoder.layers[0].cross_position
        if addend is None:
            raise self.unfit("its queries have no positions")
        return Value(addend.value)

    @property
    def mask_features(self) -> Value:
        """What all masks are products with, [batch, channels, height, width]."""
        if self.decoder.mask_features is None:
            raise self.unfit("it predicts no masks from one feature map")
        return Value(self.decoder.mask_features)

    @property
    def mask_grid(self) -> tuple[int, int]:
        """Height and width of the predicted masks, as the model was captured."""
        shown = VALUE.of(self.editor.node(self.mask_features.place))
        return shown.shape[2], shown.shape[3]

    @property
    def mask_source(self) -> Value:
        """The map that the mask features are projected from, [batch, channels, height, width]."""
        if self.decoder.mask_source is None:
            raise self.unfit("its mask features are not the projection of a feature map")
        HINT.keep(self.editor.node(self.decoder.mask_source), "mask_source")
        return Value(self.decoder.mask_source)

    @property
    def lateral(self) -> tuple[Value, int]:
        """The finest map of the backbone, [batch, channels, height, width], and its channels."""
        pixels = self.context.anatomy.pixel_decoder
        if pixels is None or pixels.lateral is None:
            raise self.unfit("no map of the backbone is as fine as the mask features")
        shown = VALUE.get(self.editor.node(pixels.lateral))
        assert isinstance(shown, torch.Tensor)
        return Value(pixels.lateral), shown.shape[1]

    def check(self) -> None:
        """Whether queries read levels as Mask2Former's do.

        Raises:
            RewriteError: VR410 without queries, with fewer than three levels, with levels that are
                no whole cells of the finest, with norms in front of branches, or with an attention
                whose weights cannot be read.
        """
        if not self.queries:
            raise self.unfit("it has no queries")
        inside = f"{self.decoder.unit}." if self.decoder.unit else ""
        fused = [path for path in self.context.anatomy.fused if path.startswith(inside)]
        if fused:
            raise self.unfit(f"the attention in '{fused[0]}' is one fused call without weights")
        if len(self.levels) < 3:
            found = len(self.levels)
            raise self.unfit(f"its layers attend to {found} of the three feature maps needed")
        if not all(layer.post_norm for layer in self.decoder.layers):
            raise self.unfit(
                "its layers have norms in front of attention, not behind",
                suggestion="build the model with pre_norm=false",
            )
        height, width = self.mask_grid
        for rows, columns in (level.grid for level in self.levels):
            if height % rows or width % columns or height // rows != width // columns:
                raise self.unfit(
                    f"{height}x{width} pixels are not made of square cells on a grid of "
                    f"{rows}x{columns}: sides of images must be multiples of 32"
                )

    def expect_softmax(self, instead: str) -> None:
        """Whether the model's own layers have cross-attentions that take positions and yield maps.

        Those of layers that a clause put in are that clause's.

        Args:
            instead: what a spec may say rather than take the layer out of the other clause.

        Raises:
            RewriteError: VR412 if another clause replaced one.
        """
        for layer in self.layers:
            if layer.replacing is not None and not layer.added:
                name, clause = layer.replacing
                raise self.clause.error(
                    "VR412",
                    f"{self.pass_name} and {name} exclude each other at '{layer.role}': the "
                    "attention there takes no positional queries and yields no map",
                    notes=[f"the other clause: {clause}"],
                    suggestion=f"take '{layer.role}' out of the other clause, {instead}",
                )

    # -- verbs ----------------------------------------------------------------------------------

    def call(
        self,
        module: nn.Module,
        *values: Value,
        name: str,
        results: tuple[str, ...],
        pixels: bool = False,
    ) -> tuple[Value, ...]:
        """`results = module(*values)` in the unit that calls the layers.

        A module that is there already is called once more; its parameters are in one place.

        Args:
            module: what is called.
            values: its arguments.
            name: of the module in its unit; in a delta too, unless it is that of the pass.
            results: variable names of what it yields.
            pixels: whether the pixel decoder calls it instead.
        """
        unit = self._pixel_unit if pixels else self.path
        given = [value.read(self.editor, unit) for value in values]
        known = [i for i in self.editor.insertions if i.module is module]
        if known:
            target = relative(known[0].path, unit)
            made = self.editor.call(unit, target, given, origin=self.clause.origin, hints=results)
        else:
            owners = (unit if name == self._stem else join(unit, name),)
            made = self.put(module, unit, given, results, owner=unit, name=name, owners=owners)
        return tuple(Value(Place(unit, node.name)) for node in made)

    @property
    def _pixel_unit(self) -> str:
        pixels = self.context.anatomy.pixel_decoder
        if pixels is None:
            raise self.unfit("no pixel decoder makes its levels")
        return pixels.levels[0].features.unit

    def threshold(self, probability: float, option: str) -> None:
        """Masks block what is less probable than this.

        Where they block nothing, it is told that the option of the pass has no effect.
        """
        found = False
        for unit in dict.fromkeys(p.mask.unit for p in self.decoder.predictions):
            graph = self.editor.graph(unit)
            masks = {self.editor.node(p.mask) for p in self.decoder.predictions}
            for node in slices.behind(n for n in masks if n.graph is graph):
                if node.target in _COMPARISONS and isinstance(node.args[1], float):
                    node.update_arg(1, probability)
                    found = True
        if not found:
            self.idle(option, "in a model whose masks block nothing")

    def insert_layer(self, behind: LayerSite, like: LayerSite, name: str) -> LayerSite:
        """Puts a copy of a layer behind another one; what is predicted then is returned too.

        The copy has parameters of its own, attends to the level of `like`, and its queries are
        masked by what is predicted from those that it gets.

        Args:
            behind: the layer that it follows.
            like: the layer that it is a copy of.
            name: of the list of modules that it becomes part of.
        """
        graph = self.editor.graph(self.path)
        following = behind.next_call
        before, old = behind.output, like.call
        made = self._adopt(like, name)
        anchor = following or next(n for n in graph.nodes if n.op == "output")
        given = slices.copy(
            [a for a in old.args if isinstance(a, fx.Node)], {like.input: before}, anchor
        )
        with graph.inserting_before(anchor):
            args = tuple(given.get(a, a) if isinstance(a, fx.Node) else a for a in old.args)
            new = graph.call_module(relative(made.path, self.path), args)
        copied_without(old, new, VALUE)
        ORIGIN.put(new, self.clause.origin)
        self._follow(behind, new, like, following)
        _draw_late(behind.call, anchor)
        return made

    def _adopt(self, like: LayerSite, name: str) -> LayerSite:
        """The module of a new layer."""
        parent = self.editor.unit(self.path)
        if name not in parent._modules:
            parent.add_module(name, nn.ModuleList().train(parent.training))
        module = self.editor.clone(like.path)
        number = len(parent.get_submodule(name)._modules)
        _, path = self.editor.adopt(self.path, join(self.path, name), str(number), module, None)
        self.editor.insertions.append(
            Insertion(
                self.pass_name, self.clause.number, path, self.path, module, self, (path,), path
            )
        )
        return LayerSite(self.context, _moved(like.layer, like.path, path), self)

    def _follow(
        self, behind: LayerSite, new: fx.Node, like: LayerSite, following: fx.Node | None
    ) -> None:
        """What came behind a layer comes behind a new one; its predictions are returned too."""
        call, stream = behind.call, behind.output
        made = {call: new, stream: self._result(new, like)}
        stops = {layer.call for layer in self.layers} - {call}
        output = next(n for n in call.graph.nodes if n.op == "output")
        anchor = following or output
        own = slices.behind([call], {*stops, new})
        returned = [n for n in output.all_input_nodes if n in own]
        given = slices.copy(returned, made, anchor)
        if following is not None:
            given = slices.copy(following.all_input_nodes, given, following)
            following.args = fx.node.map_arg(following.args, lambda n: given.get(n, n))
        grow = slices.append if following is None else slices.insert
        result, slots = grow(output.args[0], given)
        output.args = (result,)
        slices.widen(self.editor, self.path, slots)

    def _result(self, new: fx.Node, like: LayerSite) -> fx.Node:
        """The queries that a copy of a layer yields."""
        if like.output is like.call:
            return new
        with new.graph.inserting_after(new):
            return new.graph.node_copy(like.output, lambda _: new)


def _draw_late(layer: fx.Node, following: fx.Node) -> None:
    """Random numbers that are drawn between two layers and read by nobody are the second one's."""
    node = layer.next
    while node is not following:
        here, node = node, node.next
        if is_random(here) and not (here.users or here.all_input_nodes):
            following.prepend(here)


def _moved(site: _T, old: str, new: str) -> _T:
    """A site with everything that lies in one module moved to another."""

    def path(value: str) -> str:
        inside = value == old or value.startswith(f"{old}.")
        return new + value[len(old) :] if inside else value

    def moved(value: Any) -> Any:
        if isinstance(value, str):
            return path(value)
        if isinstance(value, tuple) and not hasattr(value, "_fields"):
            return tuple(map(moved, value))
        if isinstance(value, Mapping):
            return {k: moved(v) for k, v in value.items()}
        if is_dataclass(value) and not isinstance(value, type):
            changes = {f.name: moved(getattr(value, f.name)) for f in fields(value)}
            return replace(value, **changes)
        return value

    found: _T = moved(site)
    return found
