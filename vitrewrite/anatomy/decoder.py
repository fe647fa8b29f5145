"""Sites of a query decoder and of the pixel decoder that feeds it: Mask2Former's and its like.

Queries, which start as parameters, read feature maps of several levels by cross-attention, layer by
layer; before the first and after each layer a prediction is made from them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..text import Told
from .sites import Attention, Block, Linear, Mlp, Place


@dataclass(frozen=True)
class Queries(Told):
    """The parameters that the queries start from, [count, dim] each."""

    role: str
    content: str  # path of the parameter that becomes the stream
    position: str | None  # path of the one that is added in front of each attention
    count: int
    dim: int


@dataclass(frozen=True)
class Level(Told):
    """A feature map that layers attend to; several layers may share one.

    Attributes:
        features: the value that keys and values are made from, tokens and level embedding in it.
        position: the value that is added to it for the keys.
        embedding: path of the parameter that tells levels apart.
        grid: height and width.
        layers: the decoder layers that attend to it.
    """

    role: str
    index: int
    features: Place
    position: Place | None
    embedding: str | None
    grid: tuple[int, int] | None
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Addend:
    """A term of a sum, such as the positional queries in front of an attention.

    Attributes:
        total: the sum.
        index: which of its arguments it is.
        value: what makes it, behind views.
    """

    total: Place
    index: int
    value: Place


@dataclass(frozen=True)
class DecoderLayer(Told):
    """One layer: cross-attention to a level, self-attention of the queries, feed-forward part.

    Attributes:
        level: index of the level that it attends to.
        whole: whether it attends to all of the level, not to a selection.
        post_norm: whether it ends with a norm, not with a sum.
        input: the stream of queries as it enters.
        cross_position: the positional queries of the cross-attention.
        self_position: those of the self-attention.
        norms: module paths, in order of use.
    """

    role: str  # "decoder.layers[3]"
    index: int
    unit: str | None
    dim: int
    level: int
    whole: bool
    post_norm: bool
    input: Place
    output: Place
    cross_attn: Attention
    self_attn: Attention | None
    cross_position: Addend | None
    self_position: Addend | None
    ffn: Mlp | None
    norms: tuple[str, ...]
    linears: tuple[Linear, ...]

    def children(self) -> dict[str, Any]:
        """Its sites by the language's names."""
        return {"cross_attn": self.cross_attn, "self_attn": self.self_attn, "ffn": self.ffn}


@dataclass(frozen=True)
class Prediction(Told):
    """One use of the prediction heads on the queries.

    Attributes:
        after: the decoder layer that made the queries; None before the first.
        norm: path of the norm in front of the heads.
        mask: the product of mask embeddings and mask features.
        masks_layer: the decoder layer whose cross-attention it masks.
        classes: whether classes are predicted from the same queries.
        returned: whether the model returns the masks.
    """

    role: str
    index: int
    after: int | None
    norm: str | None
    mask: Place
    masks_layer: int | None
    classes: bool
    returned: bool


@dataclass(frozen=True)
class Decoder(Told):
    """The layers with what they read and what is predicted from them.

    Attributes:
        unit: path of the unit that calls the layers, if they have units of their own.
        mask_features: [B, C, H, W], which all predicted masks are products with.
        mask_source: the map that a convolution makes the mask features of.
    """

    role: str
    unit: str | None
    queries: Queries
    levels: tuple[Level, ...]
    layers: tuple[DecoderLayer, ...]
    predictions: tuple[Prediction, ...]
    mask_features: Place | None
    mask_source: Place | None
    mask_head: tuple[Linear, ...]
    class_head: Linear | None

    @property
    def norms(self) -> tuple[str, ...]:
        """Module paths of the norms in front of the prediction heads."""
        return tuple(dict.fromkeys(p.norm for p in self.predictions if p.norm is not None))

    @property
    def embeddings(self) -> tuple[str, ...]:
        """Paths of the parameters that tell levels apart."""
        found = (level.embedding for level in self.levels)
        return tuple(dict.fromkeys(path for path in found if path is not None))

    def roles(self) -> Iterator[tuple[str, Any]]:
        """Every site with its role, in model order."""
        yield self.queries.role, self.queries
        yield from ((level.role, level) for level in self.levels)
        for layer in self.layers:
            yield layer.role, layer
            yield from ((p.role, p) for p in layer.children().values() if p is not None)
            yield from ((s.role, s) for s in layer.linears)
        yield from ((p.role, p) for p in self.predictions)
        yield from ((s.role, s) for s in self.mask_head)
        if self.class_head is not None:
            yield self.class_head.role, self.class_head


@dataclass(frozen=True)
class PixelLevel(Told):
    """One scale as it enters the pixel decoder, coarsest first.

    Attributes:
        features: the projected feature map.
        projection: path of the layer that projects it.
        position: the value that is joined into the positions of all scales.
        grid: height and width.
    """

    role: str
    index: int
    features: Place
    projection: str | None
    position: Place | None
    grid: tuple[int, int] | None


@dataclass(frozen=True)
class PixelDecoder(Told):
    """What joins the scales of a backbone: its levels and its layers.

    Attributes:
        lateral: the finest map of the backbone, which only joins the mask features.
    """

    role: str
    levels: tuple[PixelLevel, ...]
    layers: tuple[Block, ...]
    lateral: Place | None

    def roles(self) -> Iterator[tuple[str, Any]]:
        """Every site with its role, in model order."""
        yield from ((level.role, level) for level in self.levels)
        for layer in self.layers:
            yield layer.role, layer
            if layer.mlp is not None:
                yield layer.mlp.role, layer.mlp
            yield from ((s.role, s) for s in layer.linears)
