"""Decoders as text, for `vitrewrite sites`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TypeVar

from .decoder import Decoder, DecoderLayer, PixelDecoder
from .sites import Attention, Block, Linear

Row = tuple[str, str]
_L = TypeVar("_L", Block, DecoderLayer)


def rows(pixels: PixelDecoder | None, decoder: Decoder | None) -> Iterator[Row]:
    """Roles, and what they are."""
    if pixels is not None:
        yield from _pixel_rows(pixels)
    if decoder is not None:
        yield from _decoder_rows(decoder)


def _pixel_rows(pixels: PixelDecoder) -> Iterator[Row]:
    for level in pixels.levels:
        parts = [_grid(level.grid), level.projection or ""]
        yield level.role, ", ".join(p for p in parts if p)
    for run in _runs(pixels.layers):
        linears = ", ".join(_short(s) for s in run[0].linears)
        yield _range(run), f"{run[0].unit or ''}: {linears}"


def _decoder_rows(decoder: Decoder) -> Iterator[Row]:
    queries = decoder.queries
    position = f", position {queries.position}" if queries.position else ""
    yield queries.role, f"{queries.count} x {queries.dim}, {queries.content}{position}"
    for level in decoder.levels:
        position = ", with position" if level.position else ""
        used = ", ".join(map(str, level.layers))
        yield level.role, f"{_grid(level.grid)}{position}, read by layers {used}"
    for layers in _runs(decoder.layers):
        yield _range(layers), f"{layers[0].unit or ''}: {_layer(layers[0])}"
    yield "decoder.predictions", _predictions(decoder)
    if decoder.mask_head:
        yield "decoder.mask_head", " -> ".join(_short(s, "path") for s in decoder.mask_head)
    if decoder.class_head is not None:
        head = decoder.class_head
        yield "decoder.class_head", f"{head.path} {head.in_features} -> {head.out_features}"


def _predictions(decoder: Decoder) -> str:
    found = decoder.predictions
    masking = sum(p.masks_layer is not None for p in found)
    returned = sum(p.returned for p in found)
    return (
        f"{len(found)}, {masking} of them mask the next layer, {returned} returned with "
        f"{sum(p.classes for p in found)} class predictions"
    )


def _layer(layer: DecoderLayer) -> str:
    parts = [("cross_attn", layer.cross_attn), ("self_attn", layer.self_attn)]
    texts = [f"{name} {_attention(part)}" for name, part in parts if part is not None]
    if layer.ffn is not None:
        texts.append("ffn " + " ".join(n for n in ("fc1", "act", "fc2") if getattr(layer.ffn, n)))
    return ", ".join(texts)


def _attention(attn: Attention) -> str:
    names = [n for n in ("q", "k", "v", "qkv", "proj") if getattr(attn, n) is not None]
    return f"({attn.heads} heads: {' '.join(names)})"


def _grid(grid: tuple[int, int] | None) -> str:
    return f"{grid[0]} x {grid[1]}" if grid else "grid unknown"


def _short(site: Linear, what: str = "role") -> str:
    return str(getattr(site, what)).rpartition(".layers[")[2].partition("].")[2] or site.path


def _runs(layers: Sequence[_L]) -> list[list[_L]]:
    """Layers in a row that have the same parts."""
    return [list(run) for _, run in groupby(layers, key=_parts)]


def _parts(layer: Block | DecoderLayer) -> object:
    roles = tuple(s.role.removeprefix(layer.role) for s in layer.linears)
    return layer.dim, roles


def _range(run: Sequence[Block | DecoderLayer]) -> str:
    first, last = run[0], run[-1]
    if first is last:
        return first.role
    return f"{first.role.rpartition('[')[0]}[{first.index}:{last.index + 1}]"
