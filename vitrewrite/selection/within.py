"""What sites have in them, by the names of the language."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
from ..anatomy.sites import Attention, Block, Linear, Mlp


@dataclass(frozen=True)
class Named:
    """A module or parameter by its own path, such as `norm` or `cls_token`."""

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
Site = Block | Attention | Mlp | Linear | Named | Entries | DecoderSite
KINDS: Mapping[str, type[Site]] = {
    "linear": Linear,
    "attention": Attention,
    "mlp": Mlp,
    "block": Block,
    "entries": Entries,
    "decoder": Decoder,
}


_OTHER_KINDS: Mapping[type, str] = {
    DecoderLayer: "layer of a decoder",
    Queries: "set of queries",
    Level: "level of a decoder",
    Prediction: "prediction of a decoder",
    PixelLevel: "level of a pixel decoder",
}


def kind_of(site: Site) -> str:
    """What kind of site it is, in words."""
    if isinstance(site, Named):
        return site.kind
    named = {cls: name for name, cls in KINDS.items()} | dict(_OTHER_KINDS)
    return next(name for cls, name in named.items() if isinstance(site, cls))


def decoder_parts(part: Decoder | PixelDecoder) -> dict[str, Any]:
    """The sites of a decoder by the language's names."""
    groups = {n: getattr(part, n, ()) for n in ("levels", "layers", "predictions", "mask_head")}
    found: dict[str, Any] = {n: SiteGroup(f"{part.role}.{n}", v) for n, v in groups.items() if v}
    if isinstance(part, Decoder):
        found |= {"queries": part.queries, "class_head": part.class_head}
    return {k: v for k, v in found.items() if v is not None}


def children(site: Site) -> dict[str, Any]:
    """The sites in a site by the language's names."""
    if isinstance(site, Decoder):
        return decoder_parts(site)
    if isinstance(site, DecoderLayer):
        return site.children()
    if isinstance(site, Queries):
        paths = (("content", site.content), ("position", site.position))
        return {n: Named(f"{site.role}.{n}", path, "parameter") for n, path in paths if path}
    if isinstance(site, Block):
        norms = {
            n: Named(f"{site.role}.{n}", path, "module")
            for n in ("norm1", "norm2")
            if (path := getattr(site, n))
        }
        other = tuple(s for s in site.linears if ".linear[" in s.role)
        extra = {"linear": SiteGroup(f"{site.role}.linear", other)} if other else {}
        return {"attn": site.attn, "mlp": site.mlp, **norms, **extra}
    if isinstance(site, Attention):
        return {n: getattr(site, n) for n in ("q", "k", "v", "qkv", "proj")}
    if isinstance(site, Mlp):
        return {n: getattr(site, n) for n in ("fc1", "fc2", "gate")}
    return {}


def parts(site: Site) -> list[Site]:
    """A site and everything in it."""
    if isinstance(site, Block):
        return [site, *(p for p in (site.attn, site.mlp) if p is not None), *site.linears]
    if isinstance(site, Decoder):
        named = [Named(path, path, "module") for path in site.norms]
        named += [Named(path, path, "parameter") for path in site.embeddings]
        return [site, *named, *(p for _, s in site.roles() for p in parts(s))]
    if isinstance(site, DecoderLayer):
        return [site, *(p for p in site.children().values() if p is not None), *site.linears]
    if isinstance(site, Queries):
        return [site, *children(site).values()]
    inner = [s for s in children(site).values() if isinstance(s, Linear)]
    if isinstance(site, Attention) and site.qkv is not None:
        inner = [s for s in inner if s is not site.qkv]  # its rows are q, k and v
    return [site, *inner]


def attributes(site: Site) -> dict[str, Any]:
    """What `where` can ask of a site."""
    if isinstance(site, Linear):
        return {
            "in_features": site.in_features,
            "out_features": site.out_features,
            "dim": site.in_features,
        }
    if isinstance(site, Block):
        return {"dim": site.dim, "index": site.index, "stage": site.stage}
    if isinstance(site, DecoderLayer):
        return {"dim": site.dim, "index": site.index, "level": site.level}
    if isinstance(site, Attention):
        dim = site.proj.out_features if site.proj else 0
        return {"heads": site.heads, "dim": dim, "windows": site.windows is not None}
    return {"role": site.role}
