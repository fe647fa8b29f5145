"""UniAdapter: a trained wide bottleneck with a norm of its own, parallel to the MLP of a block.

What it does
    Adds `s * up_visual(relu(down(norm(x))))` to the output of a block, where x is the stream that
    its MLP half starts from. It is the vision tower's part of an adapter that a model of images and
    text has once per layer index and shares between its towers.

Source
    Lu et al., "UniAdapter: Unified Parameter-Efficient Transfer Learning for Cross-modal Modeling",
    ICLR 2024; initial values and the place of the branch as in its code.

Attaches to
    The branches of a block: `mlp_branch` in the paper. At the place of AdaptFormer, so not both.

Parameters
    norm.weight [d], one, and norm.bias [d], zero, with eps 1e-5; down.weight [h, d],
    Kaiming-uniform with a = sqrt(5); down.bias [h], zero; up_visual.weight [d, h], drawn from
    N(0, 0.02^2), or zero with `zero_visual`; up_visual.bias [d], zero; with `learnable_scale` also
    scale [1], s. All trained. The towers of text have `up_text` and `up_multimodal` of their own,
    which are not here.

Forward
    y = x + dp(mlp(norm2(x))) + s * up_visual(relu(down(norm(x)))), outside of the block's drop path
    and layer scale, for all tokens.

Exactness
    Another output at initialisation, unless `zero_visual`. Not linear, so it does not fold:
    lowering takes s into `up_visual`.

Example
    insert uniadapter() at blocks[*].mlp_branch
    adds 9,470,976 parameters to ViT-B/16, and at 384 px 5.4 GMAC to 55.5.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from vitrewrite.authoring import BranchSite, Pass, option


class VisualAdapter(nn.Module):
    """y + scale * up_visual(relu(down(norm(x)))): beside what yields y from the stream x."""

    inserted_by = "uniadapter"
    changes = (1,)

    def __init__(
        self,
        width: int,
        hidden: int,
        factor: float,
        learnable: bool = False,
        zero: bool = False,
        axis: int = -1,
    ) -> None:
        super().__init__()
        self.width, self.hidden, self.factor = width, hidden, factor
        self.learnable, self.zero, self.axis = learnable, zero, axis
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, hidden)
        self.up_visual = nn.Linear(hidden, width)
        self.scale = nn.Parameter(torch.empty(1)) if learnable else None
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws `down` and `up_visual`; biases are zero."""
        self.norm.reset_parameters()
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5), generator=generator)
        nn.init.normal_(self.up_visual.weight, std=0.02, generator=generator)
        if self.zero:
            nn.init.zeros_(self.up_visual.weight)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up_visual.bias)
        if self.scale is not None:
            nn.init.constant_(self.scale, self.factor)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """y with the branch of x added, both with `width` channels on `axis`."""
        code = F.relu(self.down(self.norm(x.movedim(self.axis, -1))))
        scale = self.factor if self.scale is None else self.scale
        # On the narrower side, s costs less.
        made = F.linear(scale * code, self.up_visual.weight, scale * self.up_visual.bias)
        return y + made.movedim(-1, self.axis)


@dataclass(frozen=True)
class UniAdapter(Pass):
    """The vision tower's part of an adapter that towers share."""

    verbs: ClassVar[tuple[str, ...]] = ("insert at",)
    attaches: ClassVar[tuple[str, ...]] = ("branch",)
    excludes: ClassVar[tuple[str, ...]] = ("adaptformer", "bi.adaptformer")
    source: ClassVar[str] = "Lu et al., ICLR 2024"
    claims: ClassVar[tuple[str, ...]] = ("same_output_at_init",)

    hidden: int = option(512, minimum=1, help="width of the bottleneck")
    scale: float = option(0.1, help="factor of the branch, or what it starts as")
    learnable_scale: bool = option(False, help="whether the factor is trained")
    zero_visual: bool = option(False, help="whether the branch starts at zero")

    def rewrite(self, branch: BranchSite) -> None:
        """x + f(x) becomes x + f(x) + s * up_visual(relu(down(norm(x))))."""
        if self.hidden >= branch.dim:
            branch.warn(f"hidden {self.hidden} is no bottleneck of {branch.dim} channels")
        if not self.zero_visual and (self.scale or self.learnable_scale):
            branch.waive("same_output_at_init", "up_visual is drawn, unless zero_visual=true")
        branch.beside(
            VisualAdapter(
                branch.dim,
                self.hidden,
                self.scale,
                self.learnable_scale,
                self.zero_visual,
                branch.axis,
            )
        )

    def lower(self, branch: BranchSite, adapter: VisualAdapter) -> bool:
        """up_visual = s * up_visual; nothing is left of it for a fixed s = 0."""
        if adapter.scale is None and adapter.factor == 0:
            branch.drop()
            return True
        scale = adapter.factor if adapter.scale is None else adapter.scale
        with torch.device("meta"):  # every tensor is put in its place
            fused = VisualAdapter(adapter.width, adapter.hidden, 1.0, axis=adapter.axis)
        fused.norm, fused.down = adapter.norm, adapter.down
        fused.up_visual.weight = nn.Parameter(scale * adapter.up_visual.weight)
        fused.up_visual.bias = nn.Parameter(scale * adapter.up_visual.bias)
        branch.swap(fused)
        return False
