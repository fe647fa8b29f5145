"""Finds the pixel decoder: what joins feature maps of several scales for a query decoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .blocks import Assembler, place
from .decoder import PixelDecoder, PixelLevel
from .flow import Flow, Op
from .kinds import ADDS, JOINS, is_conv, strip
from .queries import QueryChain, grid_of
from .sites import Block, Place
from .trunk import Sets, Trunk


def joins(flow: Flow, chain: QueryChain, sets: Sets) -> list[Op]:
    """Where feature maps of different sizes become one sequence, on the way to the decoder."""
    found = []
    for op in flow.members(chain.values):
        live = [i for i in op.inputs if i.before & sets.images]
        if op.name in JOINS and len(live) > 1 and len({i.shape for i in live}) == len(live):
            found.append(op)
    return found


def pixel_decoder(
    flow: Flow, joined: list[Op], trunk: Trunk, assembler: Assembler, sets: Sets
) -> PixelDecoder | None:
    """Its levels and layers, or None without a join."""
    if not joined:
        return None
    inner = Assembler(flow, trunk, sets)
    inner.operands = assembler.operands
    layers = tuple(_as_layer(b) for b in inner.blocks())
    features = joined[0]
    positions = _positions(flow, features, sets)
    levels = tuple(
        _level(i, source, positions[i] if positions else None)
        for i, source in enumerate(features.inputs)
    )
    return PixelDecoder("pixel_decoder", levels, layers, _lateral(flow, features, sets))


def _lateral(flow: Flow, joined: Op, sets: Sets) -> Place | None:
    """What a convolution reads that neither leads to the join nor comes from it."""
    for op in flow.ops:
        if is_conv(op) and not (op.before & joined.bit or op.after & joined.bit):
            source = op.inputs[0]
            if source.before & sets.images and len(source.shape) == 4:
                return place(source)
    return None


def _positions(flow: Flow, features: Op, sets: Sets) -> tuple[Op, ...]:
    """What is joined in the same way, is made without the image, and is added to the features."""
    shapes = [i.shape for i in features.inputs]
    for op in flow.ops:
        same = op.name in JOINS and [i.shape for i in op.inputs] == shapes
        if same and not op.before & sets.images and any(u.name in ADDS for u in op.users):
            return op.inputs
    return ()


def _level(index: int, source: Op, position: Op | None) -> PixelLevel:
    values = strip(source)
    layer: Op | None = values
    while layer is not None and not is_conv(layer):
        layer = layer.inputs[0] if layer.inputs else None
    return PixelLevel(
        role=f"pixel_decoder.levels[{index}]",
        index=index,
        features=place(source),
        projection=layer.path if layer is not None else None,
        position=None if position is None else place(strip(position)),
        grid=grid_of(source),
    )


def _as_layer(block: Block) -> Block:
    """A block under its role in the pixel decoder."""
    role = f"pixel_decoder.layers[{block.index}]"

    def renamed(part: Any) -> Any:
        if part is None:
            return None
        changes: dict[str, Any] = {"role": part.role.replace(block.role, role, 1)}
        for name in ("q", "k", "v", "qkv", "proj", "fc1", "fc2", "gate"):
            if getattr(part, name, None) is not None:
                changes[name] = renamed(getattr(part, name))
        return replace(part, **changes)

    return replace(
        block,
        role=role,
        attn=renamed(block.attn),
        mlp=renamed(block.mlp),
        linears=tuple(map(renamed, block.linears)),
    )
