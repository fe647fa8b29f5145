"""What sites have in them, by the names of the language: one function per kind that has parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..anatomy.bases import Anchors
from ..anatomy.decoder import (
    Decoder,
    DecoderLayer,
    Level,
    PixelDecoder,
    PixelLevel,
    Prediction,
    Queries,
)
from ..anatomy.entries import Entries
from ..anatomy.sites import Attention, Block, Branch, ChannelLayer, Linear, Mlp


@dataclass(frozen=True)
class Named:
    """A module or parameter by its own path, such as `layers.2` or `cls_token`."""

    role: str
    path: str
    kind: str  # "module" or "parameter"


@dataclass(frozen=True)
class SiteGroup:
    """Sites that an index picks from; not a site itself.

    `gone` are those that a clause took out, by their positions among all, with that clause.
    """

    role: str
    items: tuple[Any, ...]
    children: Mapping[str, Any] | None = None
    gone: Mapping[int, tuple[Any, str]] = field(default_factory=dict)

    @property
    def numbered(self) -> tuple[Any, ...]:
        """All sites of the model as it was, for indices."""
        items, count = iter(self.items), len(self.items) + len(self.gone)
        return tuple(self.gone[i][0] if i in self.gone else next(items) for i in range(count))


DecoderSite = Decoder | DecoderLayer | Queries | Level | Prediction | PixelLevel
Model = Named | Anchors
Site = Block | Attention | Mlp | Linear | ChannelLayer | Branch | Model | Entries | DecoderSite


def of_block(block: Block) -> dict[str, Any]:
    """The sites in a block."""
    other = tuple(s for s in block.linears if ".linear[" in s.role)
    sums = tuple(b for b in block.branches if ".branch[" in b.role)
    groups = {
        name: SiteGroup(f"{block.role}.{name}", items)
        for name, items in (("linear", other), ("branch", sums))
        if items
    }
    below: list[Any] = [*block.norms, *block.convs]
    below += [b for b in block.branches if b not in sums]
    named = {s.role.removeprefix(f"{block.role}."): s for s in below}
    return {"attn": block.attn, "mlp": block.mlp, **named, **groups}


def in_block(block: Block) -> Iterator[Site]:
    """All sites in a block."""
    yield from (part for part in (block.attn, block.mlp) if part is not None)
    yield from block.linears
    yield from block.norms
    yield from block.convs
    yield from block.branches


def of_attention(attn: Attention) -> dict[str, Any]:
    """The matrices of an attention."""
    return {name: getattr(attn, name) for name in ("q", "k", "v", "qkv", "proj")}


def in_attention(attn: Attention) -> Iterator[Site]:
    """Its matrices, each row once: those of a fused layer are q, k and v."""
    found = (site for site in of_attention(attn).values() if site is not None)
    yield from (site for site in found if site is not attn.qkv)


def of_mlp(mlp: Mlp) -> dict[str, Any]:
    """The matrices of a feed-forward part."""
    return {name: getattr(mlp, name) for name in ("fc1", "fc2", "gate")}


def in_mlp(mlp: Mlp) -> Iterator[Site]:
    """Its matrices."""
    yield from (site for site in of_mlp(mlp).values() if site is not None)


def decoder_parts(part: Decoder | PixelDecoder) -> dict[str, Any]:
    """The sites of a decoder by the language's names."""
    groups = {n: getattr(part, n, ()) for n in ("levels", "layers", "predictions", "mask_head")}
    found: dict[str, Any] = {n: SiteGroup(f"{part.role}.{n}", v) for n, v in groups.items() if v}
    if isinstance(part, Decoder):
        found |= {"queries": part.queries, "class_head": part.class_head}
    return {k: v for k, v in found.items() if v is not None}


def in_layer(layer: DecoderLayer) -> Iterator[Site]:
    """All sites in a layer of a decoder."""
    yield from (part for part in layer.children().values() if part is not None)
    yield from layer.linears


def of_queries(queries: Queries) -> dict[str, Any]:
    """The tables of the queries of a decoder."""
    paths = (("content", queries.content), ("position", queries.position))
    return {n: Named(f"{queries.role}.{n}", path, "parameter") for n, path in paths if path}
