"""Dynamic focus-aware positional queries (DFPQ): where a query looked says where it looks next.

What it does
    The positional queries of a decoder layer, a learned constant, become a function of what the
    layer before attended to and of the positions of that; and positions become conditional: made
    from the features instead of from coordinates.

Source
    He et al., "Dynamic Focus-aware Positional Queries for Semantic Segmentation", CVPR 2023
    (FASeg). Where its text and its code differ, the code decides; `pool=foreground` is the text.

Attaches to
    The decoder of Mask2Former and its like, with or without `hrca`: `decoder`.

Parameters
    h.0, h.2: Linear(C, C) each, one set for all layers; default init.
    position_{l}: depthwise Conv2d(C, C, 3) per level, default init; for a level of the mask's own
    resolution Conv2d(c, C, 1) (Xavier-uniform, zero bias) and GroupNorm(32) before it. Trained.

Forward
    K_l = dwconv_l(GN(conv1x1(backbone map l))), for the keys and in the pixel decoder
    q_0 = h(sum_n w_n K_0[n] / (sum_n w_n + 1e-6) + B);    w = 1[p < 1/2], p the first masks
    q_{i+1} = h(A_i K_l + B)                               A_i: mean of the heads, after masking
    q_i is added in the cross- and self-attention of layer i. Layers that see a selection of their
    level only (`hrca`) add B in cross-attention and the last q in self-attention, and make none.
    Masks block what is less probable than 0.15 instead of 0.5.

Exactness
    Changes the output. Nothing folds.

Example
    add dfpq() to decoder
    adds 0.139 M parameters to Mask2Former.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from vitrewrite.authoring import DecoderSite, LayerSite, LevelSite, Pass, Value, option

from .keys import ConditionalPosition, LearnedPosition, ProjectedPosition
from .queries import MaskPool, PositionalQueries


@dataclass(frozen=True)
class DynamicFocusAwarePositionalQueries(Pass):
    """Positional queries from where a query looked, and positions from features."""

    verbs: ClassVar[tuple[str, ...]] = ("add",)
    attaches: ClassVar[tuple[str, ...]] = ("decoder",)
    source: ClassVar[str] = "He et al., CVPR 2023"
    claims: ClassVar[tuple[str, ...]] = ()

    queries: str = option(
        "focus",
        choices=("focus", "foreground", "dynamic_anchor", "grid_anchor", "learned"),
        help="what the attention pooled; what the masks pool; the point that it pooled; a fixed "
        "point; the model's own",
    )
    keys: str = option(
        "conditional",
        choices=("conditional", "learned", "unchanged"),
        help="positions of keys: from features, a learned map, or the model's own",
    )
    pool: str = option(
        "background",
        choices=("background", "foreground"),
        needs="queries in ('focus', 'dynamic_anchor', 'foreground')",
        help="side of the first masks that the first queries pool, as in the code or in the text",
    )
    threshold: float = option(
        0.15, minimum=0, maximum=1, help="masks block what is less probable than this"
    )

    def rewrite(self, decoder: DecoderSite) -> None:
        """K_l; q_0 from the first masks; then q from the attention of each layer."""
        decoder.check()
        self.check(decoder)
        if not decoder.threshold(self.threshold):
            decoder.idle("threshold", "in a model whose masks block nothing")
        bias = decoder.positions
        if self.keys != "unchanged":
            for level in decoder.levels:
                level.positions_become(self.positions(decoder, level))
        if self.queries == "learned":
            return
        self.check_layers(decoder)
        mode = {"dynamic_anchor": "anchor", "grid_anchor": "grid"}.get(self.queries, "focus")
        h = PositionalQueries(decoder.dim, mode)
        q: Value | None = None
        for layer, following in zip(decoder.layers, (*decoder.layers[1:], None), strict=True):
            if q is None or (layer.whole and self.queries == "foreground"):
                q = self.asked(decoder, h, bias, self.pooled(decoder, layer), layer)
            layer.give_positions(q, cross=layer.whole)
            if layer.whole and following and self.queries in ("focus", "dynamic_anchor"):
                q = self.asked(decoder, h, bias, layer.cross_attn.weights, layer)

    def asked(
        self, decoder: DecoderSite, h: nn.Module, bias: Value, weights: Value, layer: LayerSite
    ) -> Value:
        """h(weights K_l + B)."""
        seen = () if self.queries == "grid_anchor" else (weights, layer.level.position_map)
        (made,) = decoder.call(h, bias, *seen, name="dfpq", results=("query_position",))
        return made

    def pooled(self, decoder: DecoderSite, layer: LayerSite) -> Value:
        """Weights of one side of the masks that are predicted before a layer."""
        if self.queries == "grid_anchor":
            return decoder.positions
        foreground = self.pool == "foreground" or self.queries == "foreground"
        known = [m for m in decoder.inserted(MaskPool) if m.foreground == foreground]
        pool = known[0] if known else MaskPool(foreground)
        like = layer.level.position_map
        (made,) = decoder.call(pool, layer.masks, like, name="dfpq_pool", results=("weights",))
        return made

    def positions(self, decoder: DecoderSite, level: LevelSite) -> Value:
        """The map of positions of a level, made from the backbone's map of it."""
        features = level.projected
        module: nn.Module = ConditionalPosition(decoder.dim)
        if features is None:
            features, channels = decoder.lateral
            module = ProjectedPosition(channels, decoder.dim)
        if self.keys == "learned":
            module = LearnedPosition(decoder.dim, *level.grid)
        name = f"position_{level.index}"
        (made,) = decoder.call(module, features, name=f"dfpq_{name}", results=(name,), pixels=True)
        return made

    def check(self, decoder: DecoderSite) -> None:
        """Group norm and sine encodings need widths of their kind."""
        if decoder.dim % 32 and self.keys == "conditional":
            raise decoder.reject("keys", f"{decoder.dim} channels are not groups of 32")
        if decoder.dim % 4 and self.queries.endswith("anchor"):
            raise decoder.reject("queries", f"{decoder.dim} channels hold no sine of two axes")

    def check_layers(self, decoder: DecoderSite) -> None:
        """No layer that gets queries may have another attention; layers of `hrca` get none."""
        for layer in decoder.layers:
            if layer.replacing is not None and not layer.added:
                name, clause = layer.replacing
                raise decoder.clause.error(
                    "VR412",
                    f"dfpq and {name} exclude each other at '{layer.role}': the attention there "
                    "takes no positional queries and yields no map",
                    notes=[f"the other clause: {clause}"],
                    suggestion=f"take '{layer.role}' out of the other clause, write "
                    "queries=learned, or let hrca(cells=all) put in layers for it",
                )

    def delta(self, module: nn.Module) -> list[dict[str, torch.Tensor]]:
        """h as `h.0` and `h.2`; the rest by its own names."""
        parameters: dict[str, torch.Tensor] = dict(module.named_parameters())
        if isinstance(module, PositionalQueries):
            return [
                {f"h.{name[-1]}.{name[:-2]}": parameter for name, parameter in parameters.items()}
            ]
        return [parameters]
