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

from vitrewrite.authoring import AttentionSite, Pass, option

if TYPE_CHECKING:
    from .schedule import FallingKeep


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

    def forward(
        self, x: torch.Tensor, a: torch.Tensor, size: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """The tokens that are left, and how many patches each stands for."""
        size = x.new_ones(x.shape[:2]) if size is None else size
        kept, gone = self.choose(a)
        y, count = self.take(x, kept), size.gather(1, kept)
        if self.fuse and gone.shape[1]:
            weight = a.gather(1, gone)[..., None]
            fused = (weight * self.take(x, gone)).sum(dim=1, keepdim=True)
            y = torch.cat([y, fused.to(x.dtype)], dim=1)
            count = torch.cat([count, size.gather(1, gone).sum(dim=1, keepdim=True)], dim=1)
        return (y, count, *self.trace(kept, gone)) if self.traced else (y, count)

    def choose(self, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Which tokens stay, the prefix first, and which go, both in descending a."""
        count = a.shape[1] - self.prefix
        stays = self.prefix + math.ceil((self.rate if self.training else self.keep) * count)
        order = torch.arange(self.prefix + count, device=a.device).expand(a.shape[0], -1)
        if stays < self.prefix + count:
            best = a[:, self.prefix :].argsort(dim=1, descending=True, stable=True)
            order = torch.cat([order[:, : self.prefix], best + self.prefix], dim=1)
        return order[:, :stays], order[:, stays:]

    def take(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Tokens by their number, picked as rows: several times as fast as a gather."""
        image = torch.arange(x.shape[0], device=x.device)[:, None]
        rows = x.flatten(0, 1).index_select(0, (index + image * x.shape[1]).flatten())
        return rows.view(*index.shape, x.shape[2])

    def trace(self, kept: torch.Tensor, gone: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where each token is now, [B, T], and whose position each takes that is left."""
        stays = kept.shape[1]
        number = torch.arange(stays, device=kept.device).expand_as(kept)
        now = torch.cat([number, torch.full_like(gone, stays if self.fuse else -1)], dim=1)
        into = torch.empty_like(now).scatter(1, torch.cat([kept, gone], dim=1), now)
        fused = gone[:, :1] if self.fuse else gone[:, :0]
        return into, torch.cat([kept, fused], dim=1)


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
        from .schedule import FallingKeep

        return FallingKeep("prune.evit", self.start, self.length)
