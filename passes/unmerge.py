"""Gives merged or pruned patches back: dense features of models with fewer tokens in the middle.

What it does
    From one block on every patch is a token again, with the value of the token that it was merged
    into. So what needs the grid of patches, such as a dense head, features of all patches or
    another method, may follow; each token stands for one patch there.

Source
    Kim et al., "Faster Parameter-Efficient Tuning with Token Redundancy Reduction", CVPR 2025,
    where merged tokens are given back by the match; Bolya & Hoffman, "Token Merging for Fast Stable
    Diffusion", CVPR 2023 workshops.

Attaches to
    A block behind those that make the tokens fewer; its output is what changes.

Parameters
    None.

Forward
    y_i = x_(the token that patch i is in); prefix tokens in front stay as they are
    A patch that was dropped, not merged, is zero: what it was is not there any more.

Exactness
    Patches that nothing merged are as they were. Positions are those of the patches from there on.

Example
    insert merge.tome(r=8) after blocks[0:8].attn
    insert unmerge() after blocks[-1]
    ViT-B/16 leaves its last block with 197 tokens of 133.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from vitrewrite.authoring import BlockSite, Pass


class Unmerge(nn.Module):
    """Copies tokens to the patches that they stand for: x [B, T, C] grows to prefix + N.

    `into` [B, N] is the token that each patch is in, counted behind the prefix, or -1.
    """

    inserted_by = "unmerge"
    changes = (0,)

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix

    def forward(self, x: torch.Tensor, into: torch.Tensor | None = None) -> torch.Tensor:
        """The prefix, and one token for each patch."""
        if into is None:
            return x
        index = into.clamp(min=0)[..., None].expand(-1, -1, x.shape[2])
        patches = x[:, self.prefix :].gather(1, index)
        patches = patches.masked_fill((into < 0)[..., None], 0.0)
        return torch.cat([x[:, : self.prefix], patches], dim=1)


@dataclass(frozen=True)
class TokenUnmerging(Pass):
    """All patches again, each as the token that it is in."""

    verbs: ClassVar[tuple[str, ...]] = ("insert after",)
    attaches: ClassVar[tuple[str, ...]] = ("block",)
    source: ClassVar[str] = "Kim et al., CVPR 2025"
    claims: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[tuple[str, ...]] = ("prefix", "size")
    writes: ClassVar[tuple[str, ...]] = ("grid", "size")

    def rewrite(self, block: BlockSite) -> None:
        """x = unmerge(x, into)."""
        point = block.output
        point.restore(Unmerge(point.tokens.prefix))
