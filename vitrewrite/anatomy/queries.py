"""Finds a query decoder: cross-attentions in a chain whose first queries are parameters.

What tells a decoder from a trunk is where its stream starts: the stream of a trunk comes from the
image, that of a decoder from parameters, and only keys and values come from the image. Attention of
the queries among themselves is no link: its values have no image in them before the first
cross-attention, and the chain's start after it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..tracing.leaves import changed_by
from .attention import Core
from .blocks import Assembler, Parts, _sites, place, site
from .decoder import Addend, Decoder, DecoderLayer, Level, Prediction, Queries
from .flow import Flow, FlowFrame, Op, union
from .kinds import ADDS, MATMULS, is_conv, is_norm, is_transparent, matrix, norm_path, strip
from .sites import Linear, Mlp
from .trunk import BlockGroup, Residual, Sets, layer_of


@dataclass
class QueryChain:
    """The cross-attentions of a decoder, in order, each with the sum that ends its branch.

    Attributes:
        start: the queries before the first layer.
    """

    start: Op
    links: list[tuple[Core, Residual]]

    @property
    def values(self) -> int:
        """Everything that keys and values are made from, as bits."""
        bits = 0
        for core, _ in self.links:
            bits |= core.value.before
        return bits


def find_chain(
    attentions: Sequence[Core], residuals: Sequence[Residual], sets: Sets
) -> QueryChain | None:
    """The decoder's cross-attentions, or None if the model has no such decoder."""
    chain: QueryChain | None = None
    for core in attentions:
        if not core.value.before & sets.images:
            continue
        own = [r for r in residuals if r.region & core.op.bit and r.branch.before & core.op.bit]
        first = min(own, key=lambda r: r.sum.index, default=None)
        if first is None:
            continue
        if chain is None and not first.point.before & sets.images:
            if core.query.before & sets.images and not _is_placed(core, first.point):
                continue  # what asks is more of the image than positions
            chain = QueryChain(first.point, [(core, first)])
        elif chain is not None and _goes_on(chain, core, first):
            chain.links.append((core, first))
    return chain


def _is_placed(core: Core, stream: Op) -> bool:
    """Whether queries are the stream and positions, which may come from the image."""
    layer = layer_of(core.query)
    total = None if layer is None else strip(layer.inputs[0])
    return total is not None and total.name in ADDS and stream in map(strip, total.inputs)


def _goes_on(chain: QueryChain, core: Core, first: Residual) -> bool:
    """Whether queries of the chain read something that they are no part of."""
    follows = first.point.before & chain.links[-1][1].sum.bit
    return bool(follows) and not core.value.before & chain.start.bit


class Finder:
    """Makes the sites of a decoder from its chain."""

    def __init__(
        self,
        flow: Flow,
        chain: QueryChain,
        attentions: Sequence[Core],
        residuals: Sequence[Residual],
        assembler: Assembler,
        sets: Sets,
    ) -> None:
        self.flow, self.chain, self.sets = flow, chain, sets
        self.attentions, self.residuals = attentions, residuals
        self.assembler = assembler
        self.ends: list[Op] = []  # the last sum of each layer
        self.sources: list[Op] = []  # the features of each level
        self.mask_linears: dict[Op, None] = {}

    def decoder(self, head: Sequence[Linear]) -> Decoder:
        """All sites."""
        layers = tuple(self._layer(i) for i in range(len(self.chain.links)))
        products = list(self._products())
        predictions = tuple(self._prediction(j, op, side) for j, (op, side) in enumerate(products))
        named = sorted(self.mask_linears, key=lambda o: -o.index)
        masks = {site("", o).weight: o for o in named}  # one layer, used by every prediction
        features = {strip(next(i for i in op.inputs if i is not side)) for op, side in products}
        made = features.pop() if len(features) == 1 else None
        frame = self._frame(0)
        return Decoder(
            role="decoder",
            unit=None if frame is None or frame.parent is None else frame.parent.path,
            queries=self._queries(),
            levels=tuple(self._level(i, source) for i, source in enumerate(self.sources)),
            layers=layers,
            predictions=predictions,
            mask_features=None if made is None else place(made),
            mask_source=place(made.inputs[0]) if made is not None and is_conv(made) else None,
            mask_head=tuple(
                site(f"decoder.mask_head[{i}]", o)
                for i, o in enumerate(sorted(masks.values(), key=lambda o: o.index))
            ),
            class_head=self._class_head(head, [side for _, side in products]),
        )

    # -- queries and levels --------------------------------------------------------------------

    def _queries(self) -> Queries:
        # Content is what the stream starts as. What the first attention asks with is made of that,
        # of weights (its own, or its layer's), and of what is left: positions.
        core, _ = self.chain.links[0]
        content = self._parameters(self.chain.start.before)
        both = self._parameters(core.query.before)
        own = union(p for p in both if p.path.rpartition(".")[0] == core.op.frame.path)
        layer = self._frame(0)
        inside = f"{layer.path}." if layer is not None else "\0"  # which no path starts with
        position = [
            p
            for p in both
            if p not in content and not p.bit & own and not p.path.startswith(inside)
        ]
        first = content[0]
        return Queries(
            "decoder.queries", first.path, position[0].path if position else None, *first.shape[-2:]
        )

    def _parameters(self, bits: int) -> list[Op]:
        return [o for o in self.flow.members(bits) if o.name == "get_attr"]

    def _level_of(self, value: Op) -> int:
        source = strip(_whole(value))
        if source not in self.sources:
            self.sources.append(source)
        return self.sources.index(source)

    def _level(self, index: int, source: Op) -> Level:
        layers: list[int] = []
        features, position = source, None
        for number, (core, _) in enumerate(self.chain.links):
            key, value = (self._fed(core, o) for o in (core.key, core.value))
            if value is not None and strip(_whole(value)) is source:
                features = features if layers else _whole(value)
                layers.append(number)
                position = position or _added(key, source)
        embeddings = [
            p
            for i in source.inputs
            if not i.before & self.sets.images
            for p in self._parameters(i.before)
        ]
        maps = [i for i in source.inputs if i.before & self.sets.images] or [source]
        grid = grid_of(maps[0])
        if grid is not None and maps[0] is not source and math.prod(grid) not in source.shape:
            grid = None  # what reads the map has mixed its positions
        return Level(
            role=f"decoder.levels[{index}]",
            index=index,
            features=place(features),
            position=None if position is None else place(position),
            embedding=embeddings[0].path if source.name in ADDS and embeddings else None,
            grid=grid,
            layers=tuple(layers),
        )

    # -- layers --------------------------------------------------------------------------------

    def _frame(self, index: int) -> FlowFrame | None:
        """The outermost unit that holds this cross-attention and no other."""
        others = {
            f
            for i, (core, _) in enumerate(self.chain.links)
            if i != index
            for f in core.op.frame.lineage()
        }
        alone = [f for f in self.chain.links[index][0].op.frame.lineage() if f not in others]
        return alone[-1] if alone else None

    def _inside(self, index: int) -> list[Op]:
        """The ops of a layer: those of its unit, or those up to the next cross-attention."""
        frame = self._frame(index)
        if frame is not None:
            return [o for o in self.flow.ops if frame in o.frame.lineage()]
        links = self.chain.links  # decoders written out in one forward have no unit for a layer
        stop = links[index + 1][0].op.before if index + 1 < len(links) else ~0
        ours = links[index][1].point.after & stop
        return [o for o in self.flow.members(ours & ((1 << len(self.flow.ops)) - 1))]

    def _layer(self, index: int) -> DecoderLayer:
        core, first = self.chain.links[index]
        role, frame = f"decoder.layers[{index}]", self._frame(index)
        ops = self._inside(index)
        bits = union(ops)
        parts = Parts()
        cross = self.assembler.attention(f"{role}.cross_attn", core, parts)
        others = [c for c in self.attentions if c is not core and c.op.bit & bits]
        own = None
        if others:
            own = self.assembler.attention(f"{role}.self_attn", others[0], parts)
        sums = [r for r in self.residuals if r.sum.bit & bits]
        self.ends.append(sums[-1].sum if sums else first.sum)
        layers = [o for o in ops if o.bit & self.sets.linears]
        ffn = self._ffn(role, sums[-1] if sums else first, layers, parts)
        value = self._fed(core, core.value)
        last = next((o for o in reversed(ops) if is_norm(o)), None)
        post_norm = last is not None and bool(last.before & self.ends[-1].bit)
        return DecoderLayer(
            role=role,
            index=index,
            unit=None if frame is None else frame.path,
            dim=first.sum.shape[-1],
            level=self._level_of(core.value if value is None else value),
            whole=core.form != "inserted" and (value is None or _whole(value) is value),
            post_norm=post_norm,
            input=place(first.point),
            cross_position=self._position(core, first.point),
            output=place(last if last is not None and post_norm else self.ends[-1]),
            cross_attn=cross,
            self_attn=own,
            self_position=self._position(others[0]) if others else None,
            ffn=ffn,
            norms=tuple(norm_path(o) for o in ops if is_norm(o)),
            linears=_sites(role, layers, parts),
        )

    def _fed(self, core: Core, operand: Op) -> Op | None:
        """What the layer behind an operand reads."""
        if core.form == "inserted":
            return operand
        linear = self.assembler.operands.of(operand).linear
        return None if linear is None else linear.inputs[0]

    def _position(self, core: Core, stream: Op | None = None) -> Addend | None:
        """What is added to the stream, which values are made from if it is not given, for q."""
        query = self._fed(core, core.query)
        source = stream or self._fed(core, core.value)
        total = None if query is None else strip(query)
        if total is None or source is None or total.name not in ADDS or len(total.inputs) != 2:
            return None
        other = [i for i, op in enumerate(total.inputs) if strip(op) is not strip(source)]
        if len(other) != 1:
            return None
        number = total.node.args.index(total.arguments[other[0]])
        return Addend(place(total), number, place(strip(total.inputs[other[0]])))

    def _ffn(self, role: str, last: Residual, layers: Sequence[Op], parts: Parts) -> Mlp | None:
        free = [o for o in layers if o not in parts.names]
        found = self.assembler._mlp(role, BlockGroup([last], []), free, parts)
        for op, name in parts.names.items():
            parts.names[op] = name.replace("mlp.", "ffn.")
        if found is None:
            return None
        linears = {
            n: s and replace(s, role=s.role.replace(".mlp.", ".ffn."))
            for n, s in (("fc1", found.fc1), ("fc2", found.fc2), ("gate", found.gate))
        }
        return replace(found, role=f"{role}.ffn", **linears)  # type: ignore[arg-type]

    # -- predictions ---------------------------------------------------------------------------

    def _products(self) -> Iterator[tuple[Op, Op]]:
        """Products of something made from the queries with a feature map, and the former."""
        inside = union(o for c in self.attentions for o in (c.scores, c.op))
        start = self.chain.start
        for op in self.flow.members(start.after & ~inside):
            if op.name in MATMULS and len(op.inputs) == 2:
                sides = [i for i in op.inputs if i.before & start.bit]
                maps = [i for i in op.inputs if not i.before & start.bit and len(i.shape) == 4]
                if len(sides) == len(maps) == 1 and maps[0].before & self.sets.images:
                    yield op, sides[0]

    def _prediction(self, index: int, op: Op, side: Op) -> Prediction:
        norm = self._through_head(side)
        done = [i for i, end in enumerate(self.ends) if op.before & end.bit]
        after = done[-1] if done else None
        masked = [
            i
            for i, (core, _) in enumerate(self.chain.links)
            if core.op.before & op.bit and (after is None or i > after)
        ]
        users = [u for u in self.flow.outputs if strip(u) is op or u is op]
        return Prediction(
            role=f"decoder.predictions[{index}]",
            index=index,
            after=after,
            norm=None if norm is None else norm_path(norm),
            mask=place(op),
            masks_layer=masked[0] if masked else None,
            classes=norm is not None and self._class_linear(norm) is not None,
            returned=bool(users),
        )

    def _through_head(self, side: Op) -> Op | None:
        """The norm in front of the mask head; notes the layers of the head."""
        queue, found = [side], {side}
        while queue:
            op = queue.pop()
            if is_norm(op):
                return op
            if matrix(op) is not None:
                self.mask_linears.setdefault(op)
            for source in op.inputs:
                if source.before & self.chain.start.bit and source not in found:
                    found.add(source)
                    queue.append(source)
        return None

    def _class_linear(self, norm: Op) -> Op | None:
        queue = [norm]
        while queue:
            for user in queue.pop().users:
                if matrix(user) is not None and user not in self.mask_linears:
                    return user
                if strip(user) is norm:
                    queue.append(user)
        return None

    def _class_head(self, head: Sequence[Linear], sides: Sequence[Op]) -> Linear | None:
        norms = [n for s in sides if (n := self._through_head(s)) is not None]
        found = [o for n in norms if (o := self._class_linear(n)) is not None]
        if not found:
            return None
        made = site("decoder.class_head", found[0])
        return next((h for h in head if h.weight == made.weight), made)


def grid_of(op: Op) -> tuple[int, int] | None:
    """Height and width of the map [B, C, H, W] that a tensor shows."""
    while len(op.shape) != 4:
        if not is_transparent(op):
            return None
        op = op.inputs[0]
    return op.shape[2], op.shape[3]


def _added(key: Op | None, source: Op) -> Op | None:
    """What is added to the features of a level for the keys."""
    total = None if key is None else strip(key)
    if total is None or total.name not in ADDS:
        return None
    other = [i for i in total.inputs if strip(_whole(i)) is not source]
    return _whole(other[0]) if len(other) == 1 else None


def _whole(op: Op) -> Op:
    """What a module of a pass has selected `op` from; `op` itself if none has."""
    found = strip(op)
    if found.module is None or not any(c is not None for c in changed_by(found.module)):
        return op
    return _whole(found.inputs[0]) if len(found.inputs) == 1 else op
