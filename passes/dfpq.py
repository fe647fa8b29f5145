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
import torch.nn.functional as F
from torch import nn

from vitrewrite.declare import Pass, option
from vitrewrite.rewrite.sites import DecoderSite, LayerSite, LevelSite, Value


class PositionalQueries(nn.Module):
    """h(x + B), where x tells where a query looks.

    With "focus", x is what the weights [B, queries, n] pool of the positions [B, C, height, width];
    with "anchor" the sine encoding of the point that they pool; with "grid" that of a fixed point.
    """

    inserted_by = "dfpq"

    def __init__(self, dim: int, mode: str = "focus") -> None:
        super().__init__()
        self.dim, self.mode = dim, mode
        self.weight_0 = nn.Parameter(torch.empty(dim, dim))
        self.bias_0 = nn.Parameter(torch.empty(dim))
        self.weight_2 = nn.Parameter(torch.empty(dim, dim))
        self.bias_2 = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws both layers as `nn.Linear` does."""
        for weight, bias in ((self.weight_0, self.bias_0), (self.weight_2, self.bias_2)):
            nn.init.kaiming_uniform_(weight, a=5**0.5, generator=generator)
            nn.init.uniform_(bias, -(self.dim**-0.5), self.dim**-0.5, generator=generator)

    def forward(
        self,
        bias: torch.Tensor,
        weights: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Positional queries, [queries, B, C]; `bias` is of the same shape."""
        if weights is None or positions is None:
            focus = self.encoded(self.grid(bias))[:, None]
        elif self.mode == "anchor":
            focus = self.encoded(weights @ self.centres(positions)).transpose(0, 1)
        else:
            focus = torch.einsum("bqn,bcn->qbc", weights, positions.flatten(2))
        x = F.relu(F.linear(focus + bias, self.weight_0, self.bias_0))
        return F.linear(x, self.weight_2, self.bias_2)

    def centres(self, like: torch.Tensor) -> torch.Tensor:
        """(y, x) of each position of a map in [0, 1], row by row: [n, 2]."""
        height, width = like.shape[-2:]
        y = (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) / height
        x = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) / width
        return torch.stack([y.repeat_interleave(width), x.repeat(height)], dim=1)

    def grid(self, like: torch.Tensor) -> torch.Tensor:
        """(y, x) of one point per query, on a square grid that may miss its last ones: [Q, 2]."""
        count = like.shape[0]
        side = int((count - 1) ** 0.5) + 1
        number = torch.arange(count, device=like.device)
        rows, columns = number // side, number % side
        return (torch.stack([rows, columns], dim=1).to(like.dtype) + 0.5) / side

    def encoded(self, points: torch.Tensor) -> torch.Tensor:
        """Sine encoding of points, [..., 2] to [..., C]: one half for y, one for x."""
        number = torch.arange(self.dim // 4, device=points.device, dtype=points.dtype)
        angle = points[..., None] * 6.283185307179586 / 10000 ** (number / (self.dim // 4))
        return torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(-2)


class MaskPool(nn.Module):
    """Weights [B, queries, h w] of a mean over the background, or foreground, of masks.

    The masks are logits [B, queries, H, W]; `like` is a map [B, ..., h, w].
    """

    inserted_by = "dfpq"

    def __init__(self, foreground: bool = False) -> None:
        super().__init__()
        self.foreground = foreground

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """There are none."""

    def forward(self, masks: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """One over the number of positions on that side, zero on the other; no gradient."""
        masks = F.interpolate(masks.detach(), like.shape[-2:], mode="bilinear", align_corners=False)
        probable = masks.flatten(2).sigmoid()
        side = (probable > 0.5 if self.foreground else probable < 0.5).to(masks.dtype)
        return side / (side.sum(-1, keepdim=True) + 1e-6)


class ConditionalPosition(nn.Module):
    """Positions made from features: a depthwise convolution of a map [B, C, H, W]."""

    inserted_by = "dfpq"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.weight = nn.Parameter(torch.empty(dim, 1, 3, 3))
        self.bias = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws it as `nn.Conv2d` does."""
        nn.init.kaiming_uniform_(self.weight, a=5**0.5, generator=generator)
        nn.init.uniform_(self.bias, -1 / 3, 1 / 3, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W]."""
        return F.conv2d(x, self.weight, self.bias, padding=1, groups=self.dim)


class ProjectedPosition(nn.Module):
    """Positions made from a map of the backbone: 1x1 convolution, group norm, depthwise one."""

    inserted_by = "dfpq"

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.channels, self.dim = channels, dim
        self.projection = nn.Parameter(torch.empty(dim, channels, 1, 1))
        self.projection_bias = nn.Parameter(torch.empty(dim))
        self.norm_weight = nn.Parameter(torch.empty(dim))
        self.norm_bias = nn.Parameter(torch.empty(dim))
        self.weight = nn.Parameter(torch.empty(dim, 1, 3, 3))
        self.bias = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Xavier-uniform projection, default norm and depthwise convolution."""
        nn.init.xavier_uniform_(self.projection, generator=generator)
        nn.init.zeros_(self.projection_bias)
        nn.init.ones_(self.norm_weight)
        nn.init.zeros_(self.norm_bias)
        nn.init.kaiming_uniform_(self.weight, a=5**0.5, generator=generator)
        nn.init.uniform_(self.bias, -1 / 3, 1 / 3, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From [B, channels, H, W] to [B, C, H, W]."""
        x = F.conv2d(x, self.projection, self.projection_bias)
        x = F.group_norm(x, 32, self.norm_weight, self.norm_bias)
        return F.conv2d(x, self.weight, self.bias, padding=1, groups=self.dim)


class LearnedPosition(nn.Module):
    """A learned map of positions, resized to that of the features [B, ..., H, W]."""

    inserted_by = "dfpq"

    def __init__(self, dim: int, height: int, width: int) -> None:
        super().__init__()
        self.dim, self.height, self.width = dim, height, width
        self.position = nn.Parameter(torch.empty(dim, height, width))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """N(0, 1), as the learned queries."""
        nn.init.normal_(self.position, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W]."""
        position, size = self.position[None], x.shape[-2:]
        if size != position.shape[-2:]:
            position = F.interpolate(position, size, mode="bilinear", align_corners=False)
        return position.expand(x.shape[0], -1, -1, -1)


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
        help="side of the first masks that the first queries pool, as in the code or in the text",
    )
    threshold: float = option(
        0.15, minimum=0, maximum=1, help="masks block what is less probable than this"
    )

    def rewrite(self, decoder: DecoderSite) -> None:
        """K_l; q_0 from the first masks; then q from the attention of each layer."""
        decoder.check()
        self.check(decoder)
        decoder.threshold(self.threshold)
        bias = decoder.positions
        if self.keys != "unchanged":
            for level in decoder.levels:
                level.positions_become(self.positions(decoder, level))
        if self.queries == "learned":
            return
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
        name = f"dfpq_position_{level.index}"
        (made,) = decoder.call(module, features, name=name, results=("position",), pixels=True)
        return made

    def check(self, decoder: DecoderSite) -> None:
        """Group norm and sine encodings need widths of their kind."""
        if decoder.dim % 32 and self.keys == "conditional":
            raise decoder.reject("keys", f"{decoder.dim} channels are not groups of 32")
        if decoder.dim % 4 and self.queries.endswith("anchor"):
            raise decoder.reject("queries", f"{decoder.dim} channels hold no sine of two axes")

    def delta(self, module: nn.Module) -> list[dict[str, torch.Tensor]]:
        """h as `h.0` and `h.2`; the rest by its own names."""
        parameters: dict[str, torch.Tensor] = dict(module.named_parameters())
        if isinstance(module, PositionalQueries):
            return [
                {f"h.{name[-1]}.{name[:-2]}": parameter for name, parameter in parameters.items()}
            ]
        return [parameters]
