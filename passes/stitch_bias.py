"""ESTA's biases: each stitch of several models has biases of its own, and shares all else.

What it does
    Adds to what a frozen layer yields a vector that hangs on the stitch that runs.

Source
    He, Pan, Liu, Cai, Zhuang, "Efficient Stitchable Task Adaptation", CVPR 2024 (no code is
    published). The rest of its model are clauses of `lora` and an option of `snnet`.

Attaches to
    Linear layers of the blocks of models that `stitch` joins. The paper's: `attn.qkv` and
    `attn.proj` of every model; the layers between models have theirs by `snnet(biases=true)`.

Parameters
    table [s, out]: a row for each of the s stitches that run the layer, a model by itself
    counted as one, in the order of their numbers. Zero (the paper does not say), trained.

Forward
    y = W x + b + table[stitch that runs]. A model that is called as such has the row of its own.

Exactness
    The model is unchanged at initialisation. One stitch that is taken out folds exactly:
    b += its row. While all stitches stay, the table does.

Example
    stitch tiny=vit_tiny, small=vit_small, base=vit_base with snnet(ends=inner)
    insert stitch_bias() at {tiny, small, base}.blocks[*].attn.{qkv, proj}
    adds 1,405,440 parameters to ViT-Ti/S/B.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from vitrewrite.authoring import LinearSite, Pass


class StitchBias(nn.Module):
    """y + the row of the stitch that runs.

    `stitches` are the numbers of those with a row; the first is the model by itself.
    """

    inserted_by = "stitch_bias"
    changes = (0,)

    def __init__(self, width: int, stitches: tuple[int, ...]) -> None:
        super().__init__()
        self.width, self.stitches = width, stitches
        self.running: int | None = None  # while a stitch runs, its number
        self.table = nn.Parameter(torch.empty(len(stitches), width))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """No bias yet."""
        nn.init.zeros_(self.table)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        """What the layer yields, [..., width], in the same shape."""
        row = 0 if self.running is None else self.stitches.index(self.running)
        return y + self.table[row]


@dataclass(frozen=True)
class Biases(Pass):
    """Biases by stitch."""

    verbs: ClassVar[tuple[str, ...]] = ("insert at",)
    attaches: ClassVar[tuple[str, ...]] = ("linear",)
    source: ClassVar[str] = "He et al., CVPR 2024"
    claims: ClassVar[tuple[str, ...]] = ("same_output_at_init", "lowers_exactly")

    def rewrite(self, linear: LinearSite) -> None:
        """y = layer(x) becomes y = layer(x) + table[stitch that runs]."""
        linear.waive("lowers_exactly", "it folds once one stitch is taken out")
        linear.after(StitchBias(linear.out_features, linear.stitches))

    def lower(self, linear: LinearSite, module: StitchBias) -> bool:
        """b += the row of the stitch that is taken out, if one is."""
        if linear.taken_out not in module.stitches:
            return False
        row = module.table[module.stitches.index(linear.taken_out)]
        return linear.fold(shift=[row])
