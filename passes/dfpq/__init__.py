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
        """K_l of features; q_0 = h(w K_0 + B), w of the first masks; q_{i+1} = h(A_i K_l + B)."""
        self.check(decoder)
        decoder.threshold(self.threshold, "threshold")
        for level in decoder.levels if self.keys != "unchanged" else ():
            level.positions_become(self.positions(level))
        h, q = PositionalQueries(decoder.dim, "anchor" in self.queries), decoder.positions
        pool = MaskPool("foreground" in (self.pool, self.queries))
        layers = decoder.layers if self.queries != "learned" else ()
        for before, layer in zip((None, *layers), layers, strict=False):
            if (seen := self.seen(decoder, pool, before, layer)) is not None:
                (q,) = decoder.call(
                    h, decoder.positions, *seen, name="dfpq", results=("query_position",)
                )
            layer.give_positions(q, cross=layer.whole)

    def seen(
        self, decoder: DecoderSite, pool: MaskPool, before: LayerSite | None, layer: LayerSite
    ) -> tuple[Value, ...] | None:
        """Weights and the positions K_l that they pool, where queries of a layer are made anew."""
        if before is None and self.queries == "grid_anchor":
            return ()
        if before is None or (layer.whole and self.queries == "foreground"):
            ahead = layer.masks, layer.level.position_map
            return *decoder.call(pool, *ahead, name="dfpq_pool", results=("weights",)), ahead[1]
        if before.whole and self.queries in ("focus", "dynamic_anchor"):
            return before.cross_attn.weights, before.level.position_map
        return None

    def positions(self, level: LevelSite) -> nn.Module:
        """What makes K_l of the map of the backbone."""
        if self.keys == "learned":
            return LearnedPosition(level.decoder.dim, *level.grid)
        if level.projected:
            return ConditionalPosition(level.decoder.dim)
        return ProjectedPosition(level.channels, level.decoder.dim)

    def check(self, decoder: DecoderSite) -> None:
        """Group norm and sine encodings need widths of their kind, queries a map of attention."""
        decoder.check()
        groups = decoder.dim % 32 == 0 or self.keys != "conditional"
        decoder.expect(groups, "keys", f"{decoder.dim} channels are not groups of 32")
        sines = decoder.dim % 4 == 0 or "anchor" not in self.queries
        decoder.expect(sines, "queries", f"{decoder.dim} channels hold no sine of two axes")
        if self.queries != "learned":
            decoder.expect_softmax(
                "write queries=learned, or let hrca(cells=all) put in layers for it"
            )
