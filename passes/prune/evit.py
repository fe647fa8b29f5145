"""Attentive token reorganisation (EViT): patches that the class token overlooks become one token.

What it does
    Behind the attention of some blocks, the patches that the class token attends to most stay; the
    others fuse into one token, weighed by that attention. Nothing is learned but the model itself.

Source
    Liang et al., "Not All Patches Are What You Need: Expediting Vision Transformers via Token
    Reorganizations", ICLR 2022.

Attaches to
    Attentions of a model whose head reads a class token; `blocks[3, 6, 9]` of 12.

Parameters
    None.

Forward
    a = mean over heads of the class token's row of the softmax, on the n patches that are there
    K = ceil(keep n); the K patches of largest a stay, in descending a
    f = sum of a_j x_j over the others, a as it is; x' = [prefix; kept; f], without f if fuse=false
    The fused token counts as a patch further back, and stands for all patches in it, which later
    scores know with prop_attn alone. No token of the prefix goes: class, distillation token,
    registers and prompts stay in front. Nothing goes where K = n. Gradients flow through the
    tokens and through a in f.
    With schedule=cosine the share that stays in training falls from 1 to keep over `length` epochs
    behind the first `start`; in evaluation it is keep.

Exactness
    T = prefix + n tokens become prefix + K + 1, of static shape: there is nothing to lower. The
    attention is one fused call, with one row of its weights beside. Of equal weights the first
    stays.

Example
    insert prune.evit(keep=0.7) after blocks[3, 6, 9].attn
    ViT-B/16 costs 11.61 GMAC instead of 17.56, DeiT-S 3.03 instead of 4.61.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from vitrewrite.authoring import AttentionSite, Pass, Picking, option

if TYPE_CHECKING:
    from vitrewrite.authoring import FallingKeep


class AttentiveTokens(nn.Module):
    """Keeps the patches of largest weight: x [B, T, C] and sizes [B, T] shrink.

    a [B, T] are the weights of the class token on all tokens. `rate` is the share that stays in
    training, which a schedule may change.
    """

    inserted_by = "prune.evit"
    changes = (0, None)

    def __init__(self, keep: float, prefix: int, fuse: bool = True, traced: bool = False) -> None:
        super().__init__()
        self.keep, self.prefix, self.fuse, self.traced = keep, prefix, fuse, traced
        self.rate = keep
        self.picking = Picking()

    def forward(
        self, x: torch.Tensor, a: torch.Tensor, size: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """The tokens that are left, and how many patches each stands for."""
        size = x.new_ones(x.shape[:2]) if size is None else size
        patches = a[:, self.prefix :]
        rate = self.rate if self.training else self.keep
        kept, gone = self.picking.best(patches, self.prefix, math.ceil(rate * patches.shape[1]))
        y, count = self.picking(x, kept), size.gather(1, kept)
        fuse = self.fuse and gone.shape[1] > 0
        if fuse:
            weight = a.gather(1, gone)[..., None]
            fused = (weight * self.picking(x, gone)).sum(dim=1, keepdim=True)
            y = torch.cat([y, fused.to(x.dtype)], dim=1)
            count = torch.cat([count, size.gather(1, gone).sum(dim=1, keepdim=True)], dim=1)
        if not self.traced:
            return y, count
        where = torch.full_like(gone, kept.shape[1] if fuse else -1)
        whose = torch.cat([kept, gone[:, :1]], dim=1) if fuse else kept
        return y, count, self.picking.into(kept, gone, where), whose


@dataclass(frozen=True)
class AttentiveReorganisation(Pass):
    """Prunes by the attention of the class token."""

    verbs: ClassVar[tuple[str, ...]] = ("insert after",)
    attaches: ClassVar[tuple[str, ...]] = ("attention",)
    source: ClassVar[str] = "Liang et al., ICLR 2022"
    claims: ClassVar[tuple[str, ...]] = ("sizes of merged tokens sum to the number before",)
    reads: ClassVar[tuple[str, ...]] = ("prefix", "size")
    writes: ClassVar[tuple[str, ...]] = ("grid", "size")
    sole: ClassVar[str] = "pruner"

    keep: float = option(0.7, above=0, maximum=1, help="share of the patches that stays in a block")
    fuse: bool = option(True, help="what does not stay becomes one token")
    prop_attn: bool = option(
        False, help="later attentions know how many patches the fused token stands for"
    )
    schedule: str = option(
        "constant", choices=("constant", "cosine"), help="of the share in training"
    )
    start: int = option(
        10, minimum=0, needs="schedule == 'cosine'", help="epochs in which all patches stay"
    )
    length: int = option(
        100, minimum=1, needs="schedule == 'cosine'", help="epochs over which the share falls"
    )

    def rewrite(self, attn: AttentionSite) -> None:
        """x, size = keep(x, weights of the class token, size)."""
        attn.expect_sequence()
        attn.expect_free()
        attn.expect_class()
        point = attn.block.mid
        known = point.tokens.patches or 0
        stays = math.ceil(self.keep * known)
        if stays == known:
            attn.warn(f"keep={self.keep:g} of {known} patches is all of them: nothing is pruned")
        if not self.fuse:
            attn.block.waive(
                "sizes of merged tokens sum to the number before", "patches are dropped"
            )
        module = AttentiveTokens(self.keep, point.tokens.prefix, self.fuse)
        left = stays + (self.fuse and stays < known)
        point.regroup(module, attn.weights_of(0), patches=left)
        point.state("in_scores", self.prop_attn, "prop_attn")

    def errors(
        self, module: nn.Module, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
    ) -> dict[str, float]:
        """Sizes come behind the weights of the class token, where tokens were made fewer before."""
        before = inputs[2].float().sum(1) if len(inputs) > 2 else inputs[0].shape[1]
        lost = float((outputs[1].float().sum(1) - before).abs().max())
        return {"sizes of merged tokens sum to the number before": lost}

    def procedure(self) -> "FallingKeep | None":
        """The share falls in training, if it is to."""
        if self.schedule == "constant":
            return None
        from vitrewrite.authoring import FallingKeep

        return FallingKeep("prune.evit", self.start, self.length)
