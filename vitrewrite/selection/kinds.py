"""The kinds of sites: a row of one table says all that the language and the passes know of one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from typing import Any

from ..anatomy.bases import Anchors
from ..anatomy.decoder import Decoder, DecoderLayer, Level, PixelLevel, Prediction, Queries
from ..anatomy.entries import Entries
from ..anatomy.sites import (
    Anatomy,
    Attention,
    Block,
    Branch,
    ChannelLayer,
    Classifier,
    Conv,
    Linear,
    Mlp,
    Norm,
)
from .within import (
    Named,
    Site,
    decoder_parts,
    in_attention,
    in_block,
    in_layer,
    in_mlp,
    of_attention,
    of_block,
    of_mlp,
    of_queries,
)


def _nothing(_: Any) -> tuple[Site, ...]:
    return ()


def _no_children(_: Any) -> dict[str, Any]:
    return {}


def _same_role(a: Any, b: Any) -> bool:
    return bool(a.role == b.role)


def _same_path(a: Any, b: Any) -> bool:
    return bool(a.path == b.path)


def _same_rows(a: Linear, b: Linear) -> bool:
    """Whether two matrices are about the same rows of one weight."""
    if a.weight != b.weight:
        return False
    pairs = ((one, other) for one in a.ranges for other in b.ranges)
    return any(start < high and low < stop for (start, stop), (low, high) in pairs)


@dataclass(frozen=True)
class Kind:
    """A kind of site.

    Attributes:
        name: in the language, such as `linear`; else what it is in words.
        finds: what anatomy finds.
        gets: the class in `sites` that a pass gets; empty where no pass attaches.
        unit: the path of the unit whose graph holds a site.
        every: all in a model, for `every NAME`; those of `finds` that have a role by default.
        children: the sites in one by the names of the language.
        inside: all sites in one.
        facts: what `where` can ask, by name.
        module: the module or parameter that is all of a site's own, None if there is none.
        overlap: whether two sites are about the same.
        identity: what is the same for a site that has several roles.
    """

    name: str
    finds: type
    gets: str = ""
    unit: Callable[[Any], str] = attrgetter("unit")
    every: Callable[[Anatomy], Iterable[Site]] | None = None
    children: Callable[[Any], Mapping[str, Any]] = _no_children
    inside: Callable[[Any], Iterable[Site]] = _nothing
    facts: Callable[[Any], Mapping[str, Any]] = lambda site: {"role": site.role}
    module: Callable[[Any], str | None] = lambda site: getattr(site, "unit", None)
    overlap: Callable[[Any, Any], bool] = _same_role
    identity: Callable[[Any], Hashable] = id

    def sites(self, anatomy: Anatomy) -> Iterator[Any]:
        """All of the kind in a model."""
        if self.every is not None:
            yield from self.every(anatomy)
        else:
            for _, site in anatomy.roles():
                if isinstance(site, self.finds):
                    yield site


def _linear_facts(site: Linear) -> dict[str, Any]:
    sizes = {"in_features": site.in_features, "out_features": site.out_features}
    return {**sizes, "dim": site.in_features}


def _attention_facts(site: Attention) -> dict[str, Any]:
    dim = site.proj.out_features if site.proj else 0
    return {"heads": site.heads, "dim": dim, "windows": site.windows is not None}


def _mlp_facts(site: Mlp) -> dict[str, Any]:
    first, last = site.fc1, site.fc2
    return {"dim": last.out_features if last else 0, "hidden": first.out_features if first else 0}


def _of(*names: str) -> Callable[[Any], dict[str, Any]]:
    """Facts that a site keeps under their own names."""
    return lambda site: {name: getattr(site, name) for name in names}


def _width(site: ChannelLayer) -> dict[str, Any]:
    return {"dim": site.width}


def _in_decoder(decoder: Decoder) -> Iterator[Site]:
    yield from (Named(path, path, "module") for path in decoder.norms)
    yield from (Named(path, path, "parameter") for path in decoder.embeddings)
    for _, site in decoder.roles():
        yield from parts(site)


_LINEAR: Mapping[str, Any] = {
    "gets": "LinearSite",
    "unit": lambda site: site.call.unit,
    "facts": _linear_facts,
    "module": lambda site: site.weight.rpartition(".")[0],
    "overlap": _same_rows,
    "identity": lambda site: (site.weight, site.ranges),
}
_LAYER: Mapping[str, Any] = {
    "unit": lambda site: site.call.unit,
    "facts": _width,
    "module": attrgetter("path"),
    "overlap": _same_path,
    "identity": attrgetter("path"),
}
# A head is a linear layer, too: all that holds of those holds of it.
TABLE = (
    Kind("head", Classifier, every=attrgetter("head"), **{**_LINEAR, "gets": "HeadSite"}),
    Kind("linear", Linear, every=attrgetter("linears"), **_LINEAR),
    Kind(
        "attention", Attention, "AttentionSite", lambda site: site.core.unit,
        children=of_attention, inside=in_attention, facts=_attention_facts,
    ),
    Kind(
        "mlp", Mlp, "MlpSite", lambda site: site.fc2.call.unit,
        children=of_mlp, inside=in_mlp, facts=_mlp_facts,
    ),
    Kind("norm", Norm, "NormSite", every=attrgetter("norms"), **_LAYER),
    Kind("conv", Conv, "ConvSite", every=attrgetter("convs"), **_LAYER),
    Kind(
        "branch", Branch, "BranchSite", lambda site: site.sum.unit,
        lambda anatomy: (b for block in anatomy.blocks for b in block.branches),
        facts=_of("dim"), overlap=lambda a, b: a.sum == b.sum and a.index == b.index,
    ),
    Kind(
        "block", Block, "BlockSite", lambda site: site.input.unit,
        children=of_block, inside=in_block, facts=_of("dim", "index", "stage"),
    ),
    Kind(
        "entries", Entries, "EntriesSite", lambda site: site.layer.call.unit if site.layer else "",
    ),
    Kind("bases", Anchors, "BasesSite", lambda _: "", facts=_of("names"), module=lambda _: None),
    Kind(
        "decoder", Decoder, "DecoderSite", lambda site: site.unit or "",
        children=decoder_parts, inside=_in_decoder,
    ),
    Kind(
        "layer of a decoder", DecoderLayer, children=DecoderLayer.children, inside=in_layer,
        facts=_of("dim", "index", "level"),
    ),
    Kind(
        "set of queries", Queries,
        children=of_queries, inside=lambda site: of_queries(site).values(),
    ),
    Kind("level of a decoder", Level),
    Kind("prediction of a decoder", Prediction),
    Kind("level of a pixel decoder", PixelLevel),
    Kind("module or parameter", Named, module=attrgetter("path")),
)  # fmt: skip
KINDS: Mapping[str, Kind] = {kind.name: kind for kind in TABLE if kind.gets}
"""The kinds that a pass attaches to, by the language's name."""


def kind_of(site: Site) -> Kind:
    """The row of a site."""
    found: Any = type(site)
    return _kind_of(found)


@cache
def _kind_of(found: Any) -> Kind:
    return next(kind for kind in TABLE if issubclass(found, kind.finds))


def word_for(site: Site) -> str:
    """What kind of site it is, in words."""
    return site.kind if isinstance(site, Named) else kind_of(site).name


def children(site: Site) -> dict[str, Any]:
    """The sites in a site by the language's names."""
    return {k: v for k, v in kind_of(site).children(site).items() if v is not None}


def parts(site: Site) -> list[Site]:
    """A site and everything in it."""
    return [site, *kind_of(site).inside(site)]


def attributes(site: Site) -> dict[str, Any]:
    """What `where` can ask of a site."""
    return dict(kind_of(site).facts(site))


def is_any(site: Site, names: Iterable[str]) -> bool:
    """Whether a site is of one of some kinds."""
    return any(isinstance(site, KINDS[name].finds) for name in names)


def overlaps(a: Site, b: Site) -> bool:
    """Whether two sites are about the same; those of two kinds never are, but for heads."""
    first, second = kind_of(a), kind_of(b)
    kind = first if issubclass(second.finds, first.finds) else second
    return isinstance(a, kind.finds) and isinstance(b, kind.finds) and kind.overlap(a, b)
