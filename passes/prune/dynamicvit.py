"""DynamicViT: small predictors say which patches go, trained by masks, in stages.

What it does
    In front of some blocks a predictor scores the patches, and a fixed share of them stays. In
    training none is taken out: what is drawn to go is masked in all later attentions, so that the
    predictors learn what to draw.

Source
    Rao et al., "DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification",
    NeurIPS 2021.

Attaches to
    Blocks of a model whose head reads a class token; `blocks[3, 6, 9]` of 12. C divides by 4.

Parameters
    Per stage, width C: predictor.norm (eps 1e-5); predictor.fc1 [C, C], fc2 [C / 2, C],
    fc3 [C / 4, C / 2], fc4 [2, C / 4], each with its bias. Matrices from a truncated normal of
    deviation 0.02, biases zero. Trained.

Forward
    z = gelu(fc1(norm(x))) of the patches, halves z1, z2; m = sum d z2 / sum d, d what stayed before
    s = log softmax(fc4(gelu(fc3(gelu(fc2([z1; m])))))), of staying and of going
    Training: d' = d times a hard Gumbel draw of s at temperature 1, straight through. Weights of
    this block's attention and of all behind it are (e + eps / T) / (sum e + eps) with
    e = P exp(score), P_ij = d'_j and P_ii = 1; prefix tokens stay; eps = 1e-6. All tokens run on.
    Evaluation: of N patches in front of the first stage, int(N keep^k) of largest s stay in front
    of stage k = 1, 2, .., in descending s behind the prefix; m is over those that are there.

Exactness
    T tokens become prefix + int(N keep^k). Lowered, attentions are fused again and training prunes
    too: equal in evaluation. The masked model of training is another one than that. Of equal scores
    the first stays.

Example
    insert prune.dynamicvit(keep=0.7) before blocks[3, 6, 9]
    adds 2.885 M parameters; ViT-B/16 costs 11.48 GMAC instead of 17.56, DeiT-S 2.98 instead of 4.6.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from vitrewrite.authoring import (
    AttentionSite,
    BlockSite,
    MaskedSoftmax,
    Pass,
    Picking,
    TokenScores,
    frozen,
    option,
)

if TYPE_CHECKING:
    from vitrewrite.authoring import KeptTokens


class KeepPredictor(nn.Module):
    """Scores the N patches of x [B, T, C], which stand behind `prefix` other tokens: [B, N].

    In training 1 for one that stays and 0 for another, given which stayed `before`, [B, N]; in
    evaluation the log-probabilities to stay. `rate` is the share of all patches that is to stay.
    """

    inserted_by = "prune.dynamicvit"

    def __init__(self, dim: int, rate: float, prefix: int, hard: bool = False) -> None:
        super().__init__()
        self.dim, self.rate, self.prefix, self.hard = dim, rate, prefix, hard
        self.predictor = TokenScores(dim)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws the predictor."""
        self.predictor.reset_parameters(generator)

    def forward(self, x: torch.Tensor, before: torch.Tensor | None = None) -> torch.Tensor:
        """What stays, or how likely."""
        patches = x[:, self.prefix :]
        if not self.hard and self.training:
            return self.predictor.stay(patches, before)
        score: torch.Tensor = self.predictor(patches)[..., 0]
        return score


class KeepBest(nn.Module):
    """In evaluation the patches of largest score: x [B, T, C] and sizes [B, T] shrink.

    score is [B, N]; `first`, that of the first stage, says how many patches there were.
    """

    inserted_by = "prune.dynamicvit"
    changes = (0, None)

    def __init__(self, rate: float, prefix: int, hard: bool = False, traced: bool = False) -> None:
        super().__init__()
        self.rate, self.prefix, self.hard, self.traced = rate, prefix, hard, traced
        self.picking = Picking()

    def forward(
        self,
        x: torch.Tensor,
        score: torch.Tensor,
        first: torch.Tensor,
        size: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """The tokens that are left, and how many patches each stands for."""
        size = x.new_ones(x.shape[:2]) if size is None else size
        count = score.shape[1]
        if self.hard or not self.training:
            count = min(count, int(self.rate * first.shape[1] + 1e-9))
        kept, gone = self.picking.best(score, self.prefix, count)
        if gone.shape[1]:
            x, size = self.picking(x, kept), size.gather(1, kept)
        if not self.traced:
            return x, size
        return x, size, self.picking.into(kept, gone, torch.full_like(gone, -1)), kept


class KeptSoftmax(nn.Module):
    """In training a softmax over the tokens that stay, and each token's own; else the plain one."""

    inserted_by = "prune.dynamicvit"
    changes = (0,)

    def __init__(self) -> None:
        super().__init__()
        self.masked = MaskedSoftmax(1e-6, own=True)

    def forward(self, scores: torch.Tensor, stay: torch.Tensor) -> torch.Tensor:
        """Weights [B, heads, T, T] of scores of that shape."""
        return self.masked(scores, stay) if self.training else scores.softmax(dim=-1)


@dataclass(frozen=True)
class DynamicTokens(Pass):
    """Prunes in stages by what predictors say."""

    verbs: ClassVar[tuple[str, ...]] = ("insert before",)
    attaches: ClassVar[tuple[str, ...]] = ("block",)
    source: ClassVar[str] = "Rao et al., NeurIPS 2021"
    claims: ClassVar[tuple[str, ...]] = ("lowers_exactly",)
    reads: ClassVar[tuple[str, ...]] = ("prefix", "size")
    writes: ClassVar[tuple[str, ...]] = ("grid", "size")
    sole: ClassVar[str] = "pruner"

    keep: float = option(0.7, above=0, below=1, help="share of the patches that stays, by stage")
    rate_loss: float = option(2.0, minimum=0, help="weight of the rates that are missed")
    teacher_loss: float = option(0.5, minimum=0, help="and of the scores of the model as it was")
    token_loss: float = option(0.5, minimum=0, help="and of its tokens, of the patches that stay")
    token_distance: str = option(
        "mse", choices=("mse", "kl"), needs="token_loss > 0", help="between tokens"
    )
    backbone_lr: float = option(
        0.01, above=0, maximum=1, help="factor of the learning rate of the model itself"
    )

    def rewrite(self, block: BlockSite) -> None:
        """s = predict(x, d); x, size = keep(x, s, size); attentions see what stays."""
        rate, patches = self.stage(block)
        point, before = block.input, block.all_handed
        prefix = point.tokens.prefix
        score = point.look(KeepPredictor(block.dim, rate, prefix), *before[:1], name="stay")
        first = before[1] if before else score
        point.regroup(KeepBest(rate, prefix), score, first, patches=patches)
        point.state("in_scores", False, "")
        block.mask_behind(KeptSoftmax, score)
        block.hand_on(score, first)

    def stage(self, block: BlockSite) -> tuple[float, int]:
        """The share of all patches that stays at a block, and how many they are."""
        attn = block.attn
        attn.expect_sequence()
        attn.expect_free()
        attn.expect_class()
        if block.dim % 4:
            raise block.unfit(f"{block.dim} channels do not divide by 4")
        number, patches = block.siblings.index(block.role), block.together[0].entering or 0
        rate = self.keep ** (number + 1)
        left = int(rate * patches + 1e-9)
        block.expect(left, "keep", f"{rate:.2g} of {patches} patches are none")
        return rate, left

    def lower(self, site: BlockSite | AttentionSite, module: nn.Module) -> bool:
        """Fused attention; the scores, and what they leave, in training too."""
        if isinstance(module, KeptSoftmax):
            site.drop()
            return True
        if isinstance(module, KeepPredictor):
            hard = KeepPredictor(module.dim, module.rate, module.prefix, hard=True)
            hard.predictor = frozen(module.predictor)
            site.swap(hard)
        if isinstance(module, KeepBest):
            site.swap(KeepBest(module.rate, module.prefix, True, module.traced))
        return False

    def procedure(self) -> "KeptTokens":
        """Rates that are met, and scores and tokens as they were."""
        from vitrewrite.authoring import KeptTokens

        return KeptTokens(
            "prune.dynamicvit",
            self.rate_loss,
            self.teacher_loss,
            self.token_loss,
            self.token_distance,
            self.backbone_lr,
        )
