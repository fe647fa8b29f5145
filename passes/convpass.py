"""ConvPass: a trained bottleneck with a 3x3 convolution over the patches, parallel to a branch.

What it does
    Adds `s * up(qg(conv(qg(down(z)))))` to a block, where z is what the norm in front of attention
    or MLP yields. qg(t) = t * sigmoid(1.702 t).

Source
    Jie & Deng, "Convolutional Bypasses Are Better Vision Transformer Adapters", ECAI 2024.

Attaches to
    The branches of a block: `attn_branch` and `mlp_branch` in the paper, `attn_branch` alone in its
    variant. The norm has to stand in front of the branch. What other passes put in front of a layer
    in it, such as RepAdapter, is not seen; what they put behind the norm, such as SSF, is.

Parameters
    down.weight [h, d], Xavier-uniform; conv.weight [h, h, 3, 3], Xavier-uniform or the identity;
    up.weight [d, h], zero; down.bias [h], conv.bias [h] and up.bias [d], zero. d is the width of
    the stream. All trained; the scale s is fixed.

Forward
    y = x + dp(f(z)) + s * dp'(up(drop(qg(conv(qg(down(z))))))), where dp' is the drop path of the
    branch with a draw of its own. The grid of patches is that of the model. Every token in front of
    the patches (class, distillation, register, prompt) is convolved alone, as an image of 1x1, of
    which the middle of the kernel is all that acts. Maps (Swin) are convolved as they are, before
    shifts and windows. In training numbers of the code are dropped.

Exactness
    The model is unchanged at initialisation. Not linear, so it does not fold: lowering takes s into
    `up` and the dropout away, and with s = 0 all of it.

Example
    insert convpass(scale=1.0) at every branch
    adds 327,552 parameters to ViT-B/16 and 61 MMAC.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from vitrewrite.authoring import BranchSite, Pass, option


class ConvBypass(nn.Module):
    """scale * up(qg(conv(qg(down(z))))), for tokens [B, N, C] or maps with channels on `axis`.

    The last tokens are the patches of a `grid`, which is given while it runs if it is None here.
    """

    inserted_by = "convpass"

    def __init__(
        self,
        width: int,
        hidden: int,
        scale: float,
        grid: tuple[int, int] | None = None,
        kernel: str = "xavier",
        dropout: float = 0.0,
        axis: int = -1,
    ) -> None:
        super().__init__()
        self.width, self.hidden, self.scale, self.grid = width, hidden, scale, grid
        self.kernel, self.dropout, self.axis = kernel, dropout, axis
        self.down = nn.Linear(width, hidden)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.up = nn.Linear(hidden, width)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws `down` and `conv` and zeroes the rest, so that the bypass starts at zero."""
        nn.init.xavier_uniform_(self.down.weight, generator=generator)
        if self.kernel == "identity":
            nn.init.dirac_(self.conv.weight)
        else:
            nn.init.xavier_uniform_(self.conv.weight, generator=generator)
        nn.init.zeros_(self.up.weight)
        for layer in (self.down, self.conv, self.up):
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, z: torch.Tensor, height: int = 0, width: int = 0) -> torch.Tensor:
        """What is added to the branch, in the shape of z."""
        code = self.gelu(self.down(z.movedim(self.axis, -1)))
        if code.dim() == 4:
            code = self.convolved(code)
        else:
            height, width = self.grid or (height, width)
            count = height * width
            front, patches = torch.split(code, [code.shape[1] - count, count], 1)
            alone = F.linear(front, self.conv.weight[:, :, 1, 1], self.conv.bias)
            patches = self.convolved(patches.reshape(code.shape[0], height, width, -1))
            code = torch.cat([alone, patches.flatten(1, 2)], 1)
        code = F.dropout(self.gelu(code), self.dropout, self.training)
        # On the narrow side, s costs next to nothing.
        made = F.linear(self.scale * code, self.up.weight, self.scale * self.up.bias)
        return made.movedim(-1, self.axis)

    def convolved(self, maps: torch.Tensor) -> torch.Tensor:
        """The convolution of maps [B, height, width, hidden]."""
        made: torch.Tensor = self.conv(maps.permute(0, 3, 1, 2))
        return made.permute(0, 2, 3, 1)

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        """The quick form, x * sigmoid(1.702 x)."""
        return x * torch.sigmoid(1.702 * x)


@dataclass(frozen=True)
class ConvPass(Pass):
    """A convolution over the patches parallel to a branch."""

    verbs: ClassVar[tuple[str, ...]] = ("insert at",)
    attaches: ClassVar[tuple[str, ...]] = ("branch",)
    source: ClassVar[str] = "Jie & Deng, ECAI 2024"
    claims: ClassVar[tuple[str, ...]] = ("same_output_at_init",)
    reads: ClassVar[tuple[str, ...]] = ("prefix", "grid")

    hidden: int = option(8, minimum=1, help="width of the bottleneck")
    scale: float = option(1.0, help="fixed factor of the bypass; 0.01 to 100 by task")
    conv: str = option(
        "xavier", choices=("xavier", "identity"), help="what the convolution starts as, by task"
    )
    dropout: float = option(0.1, minimum=0, below=1, help="of its code, in training only")

    def rewrite(self, branch: BranchSite) -> None:
        """x + dp(f(norm(x))) becomes x + (dp(f(norm(x))) + dp(s * c(norm(x))))."""
        if self.hidden >= branch.dim:
            branch.warn(f"hidden {self.hidden} is no bottleneck of {branch.dim} channels")
        grid = branch.grid
        if (grid.size or grid.sides) and branch.prefix > 1:
            branch.warn(
                f"each of the {branch.prefix} tokens in front of the patches is convolved alone, "
                "as the class token is"
            )
        made = ConvBypass(
            branch.dim, self.hidden, self.scale, grid.size, self.conv, self.dropout, branch.axis
        )
        branch.beside(made, *grid.sides, reads="norm", drop=True)

    def lower(self, branch: BranchSite, bypass: ConvBypass) -> bool:
        """up = s * up; nothing is left of it for s = 0."""
        if bypass.scale == 0:
            branch.drop()
            return True
        options = bypass.width, bypass.hidden, 1.0, bypass.grid, bypass.kernel
        with torch.device("meta"):  # every tensor is put in its place
            fused = ConvBypass(*options, axis=bypass.axis)
        fused.down, fused.conv = bypass.down, bypass.conv
        fused.up.weight = nn.Parameter(bypass.scale * bypass.up.weight)
        fused.up.bias = nn.Parameter(bypass.scale * bypass.up.bias)
        branch.swap(fused)
        return False
