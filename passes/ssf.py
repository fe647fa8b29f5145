"""SSF: a trainable scale and shift of the features behind layers.

What it does
    Multiplies every channel that a frozen layer yields by a number of its own, and adds another.

Source
    Lian et al., "Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning",
    NeurIPS 2022, equation 4.

Attaches to
    Any linear layer (`q`, `k`, `v` are rows of a fused `qkv`), norm or convolution. The paper's
    places in a ViT: the convolution of the patch embedding; in every block `norm1`, `attn.qkv`,
    `attn.proj`, `norm2`, `mlp.fc1`, `mlp.fc2`; the final norm, unless it follows the pooling. Not
    the head. Behind a layer with LoRA it acts on the sum, whatever the order of the clauses.

Parameters
    scale [c], drawn from N(1, std^2), and shift [c], from N(0, std^2), of the c channels; both
    trained. std is 0.02; with 0 the model is unchanged at initialisation.

Forward
    y = scale * y + shift, in training too; behind the layer's own bias, before activation,
    dropout, layer scale, drop path, and the split into q, k and v. The channels of a map
    [batch, c, h, w] are on its second axis.

Exactness
    Folds exactly: W = diag(scale) W, b = scale * b + shift, of a norm its own scale and shift. Not
    where a layer is shared, and not into a norm without a scale and shift: it stays there.

Example
    insert ssf() at every conv in patch_embed + blocks[*].{norm1, norm2} + norm
    insert ssf() at blocks[*].attn.{qkv, proj} + blocks[*].mlp.{fc1, fc2}
    adds 205,824 parameters to ViT-B/16; folded, they cost nothing.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from vitrewrite.authoring import AffineSite, Pass, option


class ScaleShift(nn.Module):
    """scale * y + shift on channels of y, which lie on `axis`; the others pass as they are.

    `ranges` has the half-open ranges of channels of each part; without, it is all `count` of them.
    """

    inserted_by = "ssf"
    changes = (0,)

    def __init__(
        self,
        count: int,
        ranges: tuple[tuple[tuple[int, int], ...], ...] | None = None,
        axis: int = -1,
        std: float = 0.02,
    ) -> None:
        super().__init__()
        self.count, self.ranges, self.axis, self.std = count, ranges, axis, std
        if ranges is not None:
            self.rows = tuple(piece for part in ranges for piece in part)
        self.scale = nn.Parameter(torch.empty(count))
        self.shift = nn.Parameter(torch.empty(count))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws scales around one and shifts around zero."""
        nn.init.normal_(self.scale, 1.0, self.std, generator=generator)
        nn.init.normal_(self.shift, 0.0, self.std, generator=generator)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        """y [..., channels] or [batch, channels, ...], in the same shape."""
        if self.ranges is None and self.axis == -1:
            return y * self.scale + self.shift
        scale: torch.Tensor = self.scale
        shift: torch.Tensor = self.shift
        if self.ranges is not None:
            scale = self.spread(scale, y.shape[self.axis], 1.0)
            shift = self.spread(shift, y.shape[self.axis], 0.0)
        if self.axis != -1:
            shape = [1] * y.dim()
            shape[self.axis] = y.shape[self.axis]
            scale, shift = scale.view(shape), shift.view(shape)
        return y * scale + shift

    def spread(self, numbers: torch.Tensor, width: int, other: float) -> torch.Tensor:
        """The numbers where their channels are among all, [width]."""
        if numbers.shape[0] == width:
            return numbers
        made, end = [], 0
        pieces = torch.split(numbers, [b - a for a, b in self.rows])
        for (start, stop), piece in zip(self.rows, pieces, strict=True):
            made += [numbers.new_full((start - end,), other), piece]
            end = stop
        return torch.cat([*made, numbers.new_full((width - end,), other)])


@dataclass(frozen=True)
class Ssf(Pass):
    """Scaling and shifting of features."""

    verbs: ClassVar[tuple[str, ...]] = ("insert at",)
    attaches: ClassVar[tuple[str, ...]] = ("linear", "norm", "conv")
    source: ClassVar[str] = "Lian et al., NeurIPS 2022"
    claims: ClassVar[tuple[str, ...]] = ("same_output_at_init", "lowers_exactly")

    std: float = option(0.02, minimum=0, help="of the initial values; 0 changes nothing at first")

    def rewrite(self, layer: AffineSite) -> None:
        """y = layer(x) becomes y = scale * layer(x) + shift."""
        if self.std:
            layer.waive("same_output_at_init", "its scale and shift are drawn with std > 0")
        count = sum(b - a for part in layer.ranges for a, b in part)
        ranges = None if layer.is_whole else layer.ranges
        layer.after(ScaleShift(count, ranges, layer.axis, self.std))

    def lower(self, layer: AffineSite, affine: ScaleShift) -> bool:
        """W = diag(scale) W, b = scale * b + shift."""
        parts = self.delta(affine)
        return layer.fold(scale=[p["scale"] for p in parts], shift=[p["shift"] for p in parts])

    def cost(self, out_features: int, in_features: int) -> int:
        """Parameters at a matrix."""
        return 2 * out_features

    def delta(self, affine: ScaleShift) -> list[dict[str, torch.Tensor]]:
        """The scale and shift of each part."""
        ranges = affine.ranges or (((0, affine.count),),)
        sizes = [sum(b - a for a, b in part) for part in ranges]
        pairs = zip(torch.split(affine.scale, sizes), torch.split(affine.shift, sizes), strict=True)
        return [{"scale": scale, "shift": shift} for scale, shift in pairs]
