"""Verbs of one feature map that layers of a query decoder attend to."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import fx, nn

from ..anatomy.decoder import Level, PixelLevel
from ..anatomy.sites import Place
from ..editing import slices
from ..editing.editor import after
from ..editing.value import Value
from ..tracing.notes import HINT, VALUE
from .base import BoundSite

if TYPE_CHECKING:
    from .decoder import DecoderSite


@dataclass(frozen=True, eq=False)
class LevelSite(BoundSite):
    """A feature map that layers attend to, with the positions that are added for the keys."""

    level: Level
    decoder: DecoderSite

    @property
    def role(self) -> str:
        """The site in words."""
        return self.level.role

    @property
    def path(self) -> str:
        """The unit that makes it."""
        return self.level.features.unit

    @property
    def index(self) -> int:
        """Which level it is, coarsest first."""
        return self.level.index

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width at the image size that the model was captured for."""
        if self.level.grid is None:
            raise self.unfit("it is no feature map")
        return self.level.grid

    @property
    def features(self) -> Value:
        """Keys and values are made of these, [positions, batch, channels]."""
        return Value(self.level.features)

    @property
    def position(self) -> Value:
        """What is added to the features for the keys, [positions, batch, channels]."""
        if self.level.position is None:
            raise self.unfit("nothing is added to it for the keys")
        return Value(self.level.position)

    @property
    def position_map(self) -> Value:
        """The same as a map, [batch, channels, height, width]."""
        return Value(_map_behind(self, self.position.place))

    @property
    def pixel_level(self) -> PixelLevel | None:
        """The level of the pixel decoder that has the same grid."""
        pixels = self.context.anatomy.pixel_decoder
        levels = pixels.levels if pixels is not None else ()
        return next((each for each in levels if each.grid == self.level.grid), None)

    @property
    def projected(self) -> bool:
        """Whether the map of the backbone that it is made of enters the pixel decoder.

        It does so projected to the width of the queries.
        """
        return self.pixel_level is not None

    @property
    def channels(self) -> int:
        """Channels of the map of the backbone that it is made of, as `positions_become` has it."""
        return self.decoder.dim if self.projected else self.decoder.lateral[1]

    def positions_become(self, module: nn.Module) -> None:
        """Positions for the keys, and in the pixel decoder, are made of features.

        Args:
            module: from the map of the backbone, [batch, channels, height, width], to positions
                [batch, width of the queries, height, width]. A map that is `projected` is taken
                where it enters the pixel decoder.
        """
        pixels, name = self.pixel_level, f"position_{self.index}"
        features = (
            self.decoder.lateral[0] if pixels is None else Value(_map_behind(self, pixels.features))
        )
        (value,) = self.decoder.call(
            module, features, name=f"{self._stem}_{name}", results=(name,), pixels=True
        )
        places = [self.position.place]
        if pixels is not None and pixels.position is not None:
            places.insert(0, pixels.position)
        for place in places:
            old = _map_behind(self, place)
            node = self.editor.node(old)
            new = value.read(self.editor, old.unit)
            VALUE.keep(new, VALUE.of(node))  # a map of the same size
            _move_users(node, new)

    def positions_of(self, value: Value, name: str) -> Value:
        """Positions for another map, made as those of this level are.

        Args:
            value: [batch, channels, height, width].
            name: of the variable that holds them.

        Returns:
            [positions, batch, channels].
        """
        place = self.editor.where(self.position.place)
        node = self.editor.node(place)
        sources = slices.ahead([node])
        maps = [n for n in sources if n.op == "placeholder" and _dimensions(n) == 4]
        if len(maps) != 1:
            raise self.unfit("its positions do not depend on the size of one map")
        new = value.read(self.editor, place.unit)
        with after(node.graph, [new, node]):
            anchor = node.graph.call_function(operator.pos, (new,))
        made = slices.copy([node], {maps[0]: new}, anchor)
        node.graph.erase_node(anchor)
        HINT.put(made[node], name)
        return Value(Place(place.unit, made[node].name))


def _move_users(old: fx.Node, new: fx.Node) -> None:
    """What read one node reads another, which may be made later."""
    order = {node: i for i, node in enumerate(old.graph.nodes)}
    late = [n for n in slices.behind([old]) if order[n] < order[new] and n is not old]
    for node in sorted(late, key=order.__getitem__, reverse=True):
        new.append(node)
    old.replace_all_uses_with(new)


def _map_behind(site: BoundSite, place: Place) -> Place:
    """The map [batch, channels, height, width] that a sequence at a place shows."""
    place = site.editor.where(place)
    node = site.editor.node(place)
    while _dimensions(node) != 4:
        shown = VALUE.get(node)
        inner = [
            n
            for n in node.all_input_nodes
            if isinstance(v := VALUE.get(n), torch.Tensor)
            and isinstance(shown, torch.Tensor)
            and v.numel() == shown.numel()
        ]
        if not inner:
            raise site.unfit("it is no feature map")
        node = inner[0]
    return Place(place.unit, node.name)


def _dimensions(node: fx.Node) -> int:
    value = VALUE.get(node)
    return value.dim() if isinstance(value, torch.Tensor) else 0
