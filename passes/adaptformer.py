"""AdaptFormer: a trained bottleneck parallel to the MLP of a block.

What it does
    Adds `s * up(relu(down(x)))` to the output of a block, where x is the stream that its MLP half
    starts from, before the norm.

Source
    Chen et al., "AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition",
    NeurIPS 2022, equation 3. `form` sets the other options, as far as they are not set: `fpet` as
    in FPET (CVPR 2025) and the VTAB tables (h = 8, s = 1, no biases), `original` as in the paper
    (h = 64, s = 0.1, biases), `peer` as the original with a norm on the input of the branch.

Attaches to
    The branches of a block: `mlp_branch` in the paper, `attn_branch` too. It reads the stream that
    the branch is added to, also where the norm stands behind the MLP; so not where attention and
    MLP run side by side on one stream, of which neither is added to what it reads.

Parameters
    down [h, d], Kaiming-uniform with a = sqrt(5), and up [d, h], zero; with `bias` also down_bias
    [h] and up_bias [d], zero; with `norm` also norm.weight [d], one, and norm.bias [d], zero, eps
    1e-5. d is the width of the stream. All trained; the scale s is fixed.

Forward
    y = x + dp(mlp(norm2(x))) + s * up(drop(relu(down(x)))), outside of the block's drop path and
    layer scale, for all tokens; down(norm(x)) with `norm`. In training numbers of the code are
    dropped.

Exactness
    The model is unchanged at initialisation. Not linear, so it does not fold: lowering takes s into
    `up` and the dropout away, and with s = 0 the whole branch.

Example
    insert adaptformer(hidden=8) at blocks[*].mlp_branch
    adds 147,456 parameters to ViT-B/16, 156,768 with biases.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from vitrewrite.authoring import BranchSite, Pass, option


class ParallelAdapter(nn.Module):
    """y + scale * up(relu(down(x))): beside what yields y from the stream x."""

    inserted_by = "adaptformer"
    changes = (1,)

    def __init__(
        self,
        width: int,
        hidden: int,
        scale: float = 0.1,
        bias: bool = False,
        dropout: float = 0.0,
        axis: int = -1,
        normed: bool = False,
    ) -> None:
        super().__init__()
        self.width, self.hidden, self.scale = width, hidden, scale
        self.bias, self.dropout, self.axis, self.normed = bias, dropout, axis, normed
        self.norm = nn.LayerNorm(width) if normed else None
        self.down = nn.Parameter(torch.empty(hidden, width))
        self.up = nn.Parameter(torch.empty(width, hidden))
        self.down_bias = nn.Parameter(torch.empty(hidden)) if bias else None
        self.up_bias = nn.Parameter(torch.empty(width)) if bias else None
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws `down` and zeroes the rest, so that the branch starts at zero."""
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(self.up)
        if self.norm is not None:
            self.norm.reset_parameters()
        if self.down_bias is not None and self.up_bias is not None:
            nn.init.zeros_(self.down_bias)
            nn.init.zeros_(self.up_bias)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """y with the branch of x added, both with `width` channels on `axis`."""
        x = x.movedim(self.axis, -1)
        if self.norm is not None:
            x = self.norm(x)
        code = F.relu(F.linear(x, self.down, self.down_bias))
        code = F.linear(F.dropout(code, self.dropout, self.training), self.up, self.up_bias)
        return y + self.scale * code.movedim(-1, self.axis)


@dataclass(frozen=True)
class AdaptFormer(Pass):
    """A bottleneck parallel to a branch."""

    verbs: ClassVar[tuple[str, ...]] = ("insert at",)
    attaches: ClassVar[tuple[str, ...]] = ("branch",)
    source: ClassVar[str] = "Chen et al., NeurIPS 2022"
    claims: ClassVar[tuple[str, ...]] = ("same_output_at_init",)

    form: str = option(
        "fpet", choices=("fpet", "original", "peer"), help="what the other options are by default"
    )
    hidden: int | None = option(None, minimum=1, help="width of the bottleneck; 8 in fpet, else 64")
    scale: float | None = option(None, help="fixed factor of the branch; 1 in fpet, else 0.1")
    bias: bool | None = option(None, help="whether its two layers have biases; not in fpet")
    norm: bool | None = option(None, help="whether a norm reads x first; in peer alone")
    dropout: float = option(0.1, minimum=0, below=1, help="of its code, in training only")

    def rewrite(self, branch: BranchSite) -> None:
        """x + f(x) becomes x + f(x) + s * up(relu(down(x)))."""
        fpet = self.form == "fpet"
        hidden = self.hidden or (8 if fpet else 64)
        scale = (1.0 if fpet else 0.1) if self.scale is None else self.scale
        bias = not fpet if self.bias is None else self.bias
        norm = self.form == "peer" if self.norm is None else self.norm
        if hidden >= branch.dim:
            branch.warn(f"hidden {hidden} is no bottleneck of {branch.dim} channels")
        made = ParallelAdapter(
            branch.dim, hidden, scale, bias, self.dropout, branch.axis, normed=norm
        )
        branch.beside(made)

    def lower(self, branch: BranchSite, adapter: ParallelAdapter) -> bool:
        """up = s * up; nothing is left of it for s = 0."""
        if adapter.scale == 0:
            branch.drop()
            return True
        options = adapter.width, adapter.hidden, 1.0, adapter.bias
        fused = ParallelAdapter(*options, axis=adapter.axis, normed=adapter.normed)
        fused.down, fused.down_bias, fused.norm = adapter.down, adapter.down_bias, adapter.norm
        fused.up = nn.Parameter(adapter.scale * adapter.up)
        if adapter.up_bias is not None:
            fused.up_bias = nn.Parameter(adapter.scale * adapter.up_bias)
        branch.swap(fused)
        return False
