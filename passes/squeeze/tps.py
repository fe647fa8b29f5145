"""Token pruning and squeezing (TPS): what goes is folded into the most similar token that stays.

What it does
    Patches go in stages, chosen by small predictors (dTPS, in front of blocks) or by the attention
    of the class token (eTPS, behind attentions). Each that goes is averaged into its nearest one of
    those that stay.

Source
    Wei et al., "Joint Token Pruning and Squeezing Towards More Aggressive Compression of Vision
    Transformers", CVPR 2023. The selection of eTPS is that of EViT, as its code is not public.

Attaches to
    Blocks (dTPS; C divides by 4) or attentions (eTPS) of a model whose head reads a class token;
    the blocks 3, 6 and 9 of 12.

Parameters
    dTPS per stage, width C: predictor.norm (eps 1e-5); predictor.fc1 [C, C], fc2 [C / 2, C],
    fc3 [C / 4, C / 2], fc4 [2, C / 4], each with its bias. Matrices from a truncated normal of
    deviation 0.02, biases zero. Trained. eTPS has none.

Forward
    Squeeze: s_ij = <p_i, r_j> / ((|p_i| + 1e-6) (|r_j| + 1e-6)), p what goes, r what stays
    j(i) = argmax_j s_ij; D_j = e + sum of exp(s_ij) over j(i) = j
    r_j <- (e r_j + sum over j(i) = j of exp(s_ij) p_i) / D_j; no token of the prefix takes part
    dTPS: predictor, draw and masks as in DynamicViT; of N patches int(N keep^k) stay in stage k.
    Training: all tokens run on. d' = d times the draw, q = (1 - d') d; s among all patches, -100
    with itself and towards what has d' = 0; m_ij = q_i [s_ij is the largest of row i], the bracket
    constant; x_j <- (e x_j + sum_i w_ij x_i) / (e + sum_i w_ij) with w_ij = m_ij exp(m_ij s_ij).
    eTPS: K = ceil(keep n) patches of largest class attention stay, in descending order; training
    and evaluation are alike. schedule, start, length: the share in training, as EViT has it.
    Sizes are added up, and no score knows of them.

Exactness
    Lowered, an argmax and an index-add; attentions of dTPS are fused again, and it prunes in
    training too. Equal in evaluation, except where a token has several nearest ones (equal tokens):
    all of them take it, lowered the first.

Example
    insert squeeze.tps(keep=0.7) before blocks[3, 6, 9]
    DeiT-S costs 2.99 GMAC instead of 4.6, 2.98 lowered; after blocks[3, 6, 9].attn 3.01, then 3.0.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

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
    from vitrewrite.authoring import FallingKeep, KeptTokens


class Squeeze(nn.Module):
    """Folds tokens that go [B, M, C] into their nearest ones of those that stay [B, K, C]."""

    def __init__(self, flat: bool = False) -> None:
        super().__init__()
        self.flat, self.picking = flat, Picking()

    def into(
        self,
        x: torch.Tensor,
        size: torch.Tensor,
        kept: torch.Tensor,
        gone: torch.Tensor,
        start: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The tokens [B, T, C] that are kept, sizes, and in which of these each is that goes."""
        if not gone.shape[1]:
            return x, size, gone
        y, out = self.picking(x, kept), self.picking(x, gone)
        patches, nearest = self(y[:, start:], out)
        nearest = nearest + start
        size = size.gather(1, kept).scatter_add(1, nearest, size.gather(1, gone))
        return torch.cat([y[:, :start], patches], dim=1), size, nearest

    def forward(self, stay: torch.Tensor, gone: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What stays, squeezed, and the nearest one of each that goes, [B, M]."""
        with torch.autocast("cpu" if stay.is_meta else stay.device.type, enabled=False):
            r, p = self.wide(stay), self.wide(gone)
            s = self.unit(p) @ self.unit(r).mT
            best, nearest = s.max(dim=-1)
            if self.flat:
                made = self.add(r, p, best.exp(), nearest)
            else:
                made = self.mix(r, p, torch.where(s == best[..., None], s.exp(), 0.0))
        return made.to(stay.dtype), nearest

    def mix(self, r: torch.Tensor, p: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """(e r + weight^T p) / (e + sum of weight), weight [B, M, K]."""
        total = math.e + weight.sum(dim=1)[..., None]
        return (math.e * r + weight.mT @ p) / total

    def add(
        self, r: torch.Tensor, p: torch.Tensor, weight: torch.Tensor, nearest: torch.Tensor
    ) -> torch.Tensor:
        """The same where each p goes into one r, as rows of one matrix."""
        batch, count, width = r.shape
        image = torch.arange(batch, device=r.device)[:, None]
        into = (nearest + image * count).flatten()
        total = weight.new_full((batch * count,), math.e).index_add(0, into, weight.flatten())
        made = (math.e * r).flatten(0, 1)
        made = made.index_add(0, into, (weight[..., None] * p).flatten(0, 1))
        return (made / total[:, None]).view(batch, count, width)

    def among(
        self, x: torch.Tensor, stay: torch.Tensor, before: torch.Tensor | None
    ) -> torch.Tensor:
        """All tokens [B, N, C] run on; those that went just now, of which stayed before, are in."""
        with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
            wide = self.wide(x)
            s = self.unit(wide) @ self.unit(wide).mT
            itself = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
            s = s.masked_fill(itself, -100.0).masked_fill(stay[:, None].detach() < 0.5, -100.0)
            went = (1 - stay) * (1.0 if before is None else before)
            largest = (s == s.amax(dim=-1, keepdim=True)).to(s.dtype)
            match = largest * went[..., None].to(s.dtype)
            # 1 in the exponent where it counts; the published gradient goes through it there too.
            made = self.mix(wide, wide, match * (match * s).exp())
        return made.to(x.dtype)

    def unit(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens of length one; one that is zero stays so."""
        length: torch.Tensor = x.norm(dim=-1, keepdim=True)
        return x / (length + 1e-6)

    def wide(self, x: torch.Tensor) -> torch.Tensor:
        """In float32 or better."""
        return x.to(torch.promote_types(x.dtype, torch.float32))


class SqueezePredictor(nn.Module):
    """Scores the N patches of x [B, T, C], which stand behind `prefix` other tokens: [B, N].

    In training 1 for one that stays and 0 for another, given which stayed `before`, [B, N]; in
    evaluation the log-probabilities to stay. `rate` is the share of all patches that is to stay.
    """

    inserted_by = "squeeze.tps"

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


class SqueezedTokens(nn.Module):
    """Prunes by scores, and squeezes: x [B, T, C] and sizes [B, T] shrink.

    score [B, N] is of the patches behind `prefix` other tokens; `first` [B, N], that of the first
    stage, says how many there were, and `before` [B, N] which stayed in the stage before, that of
    the first one but in training. Of a stage that `leads` there is none before. Once `hard`,
    training prunes too.
    """

    inserted_by = "squeeze.tps"
    changes = (0, None)

    def __init__(
        self, rate: float, prefix: int, leads: bool, hard: bool = False, traced: bool = False
    ) -> None:
        super().__init__()
        self.rate, self.prefix, self.leads = rate, prefix, leads
        self.hard, self.traced = hard, traced
        self.picking, self.squeeze = Picking(), Squeeze(flat=hard)

    def forward(
        self,
        x: torch.Tensor,
        score: torch.Tensor,
        first: torch.Tensor,
        before: torch.Tensor,
        size: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """The tokens that are left, and how many patches each stands for."""
        size = x.new_ones(x.shape[:2]) if size is None else size
        count, start, now = score.shape[1], self.prefix, self.hard or not self.training
        if now:
            count = min(count, int(self.rate * first.shape[1] + 1e-9))
        else:
            patches = self.squeeze.among(x[:, start:], score, None if self.leads else before)
            x = torch.cat([x[:, :start], patches], dim=1)
        kept, gone = self.picking.best(score, start, count)
        x, size, nearest = self.squeeze.into(x, size, kept, gone, start)
        if not self.traced:
            return x, size
        return x, size, self.picking.into(kept, gone, nearest), kept


class SqueezedByClass(nn.Module):
    """Prunes by the weights a [B, T] of the class token, and squeezes: x and sizes shrink.

    `rate` is the share that stays in training, which a schedule may change.
    """

    inserted_by = "squeeze.tps"
    changes = (0, None)

    def __init__(self, keep: float, prefix: int, flat: bool = False, traced: bool = False) -> None:
        super().__init__()
        self.keep, self.prefix, self.flat, self.traced = keep, prefix, flat, traced
        self.rate = keep
        self.picking, self.squeeze = Picking(), Squeeze(flat)

    def forward(
        self, x: torch.Tensor, a: torch.Tensor, size: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """The tokens that are left, and how many patches each stands for."""
        size = x.new_ones(x.shape[:2]) if size is None else size
        start, rate = self.prefix, self.rate if self.training else self.keep
        count = math.ceil(rate * (x.shape[1] - start))
        kept, gone = self.picking.best(a[:, start:], start, count)
        x, size, nearest = self.squeeze.into(x, size, kept, gone, start)
        if not self.traced:
            return x, size
        return x, size, self.picking.into(kept, gone, nearest), kept


class SqueezeSoftmax(nn.Module):
    """In training a softmax over the tokens that stay, and each token's own; else the plain one."""

    inserted_by = "squeeze.tps"
    changes = (0,)

    def __init__(self) -> None:
        super().__init__()
        self.masked = MaskedSoftmax(1e-6, own=True)

    def forward(self, scores: torch.Tensor, stay: torch.Tensor) -> torch.Tensor:
        """Weights [B, heads, T, T] of scores of that shape."""
        return self.masked(scores, stay) if self.training else scores.softmax(dim=-1)


@dataclass(frozen=True)
class PruneAndSqueeze(Pass):
    """Prunes in stages, and folds what goes into what stays."""

    verbs: ClassVar[tuple[str, ...]] = ("insert before", "insert after")
    attaches: ClassVar[tuple[str, ...]] = ("block", "attention")
    source: ClassVar[str] = "Wei et al., CVPR 2023"
    claims: ClassVar[tuple[str, ...]] = (
        "lowers_exactly",
        "sizes of merged tokens sum to the number before",
    )
    reads: ClassVar[tuple[str, ...]] = ("prefix", "size")
    writes: ClassVar[tuple[str, ...]] = ("grid", "size")
    sole: ClassVar[str] = "pruner"

    keep: float = option(0.7, above=0, maximum=1, help="share of the patches that stays, by stage")
    rate_loss: float = option(2.0, minimum=0, help="dTPS: weight of the rates that are missed")
    teacher_loss: float = option(0.5, minimum=0, help="and of the scores of the model as it was")
    token_loss: float = option(0.5, minimum=0, help="and of its tokens, of the patches that stay")
    token_distance: str = option(
        "kl", choices=("kl", "mse"), needs="token_loss > 0", help="between tokens"
    )
    backbone_lr: float = option(
        0.01, above=0, maximum=1, help="dTPS: factor of the learning rate of the model itself"
    )
    schedule: str = option(
        "constant", choices=("constant", "cosine"), help="eTPS: of the share in training"
    )
    start: int = option(
        10, minimum=0, needs="schedule == 'cosine'", help="epochs in which all patches stay"
    )
    length: int = option(
        100, minimum=1, needs="schedule == 'cosine'", help="epochs over which the share falls"
    )

    def rewrite(self, site: BlockSite | AttentionSite) -> None:
        """x, size = squeeze(x, s, size), by the scores of a predictor or of the class token."""
        attn = site.attn if isinstance(site, BlockSite) else site
        attn.expect_sequence()
        attn.expect_free()
        attn.expect_class()
        site.state("in_scores", False, "")
        if isinstance(site, BlockSite):
            self.by_predictor(site)
        else:
            self.by_class(site)

    def by_class(self, attn: AttentionSite) -> None:
        """eTPS: what the class token attends to stays."""
        for name in ("rate_loss", "teacher_loss", "token_loss", "token_distance", "backbone_lr"):
            attn.idle(name, "behind an attention: no predictor is trained")
        point = attn.block.mid
        known = point.tokens.patches or 0
        left = math.ceil(self.keep * known)
        if left == known:
            attn.warn(f"keep={self.keep:g} of {known} patches is all of them: nothing is pruned")
            attn.block.waive("lowers_exactly", "nothing is pruned")
        module = SqueezedByClass(self.keep, point.tokens.prefix)
        point.regroup(module, attn.weights_of(0), patches=left)

    def by_predictor(self, block: BlockSite) -> None:
        """dTPS: what a predictor says stays; in training it is masked in what follows."""
        block.idle("schedule", "in front of a block: all tokens run on in training")
        rate, patches = self.stage(block)
        point, before = block.input, block.all_handed
        prefix = point.tokens.prefix
        score = point.look(SqueezePredictor(block.dim, rate, prefix), *before[:1], name="stay")
        earlier, first = before or (score, score)
        module = SqueezedTokens(rate, prefix, not before)
        point.regroup(module, score, first, earlier, patches=patches)
        block.mask_behind(SqueezeSoftmax, score)
        block.hand_on(score, first)

    def stage(self, block: BlockSite) -> tuple[float, int]:
        """The share of all patches that stays at a block, and how many they are."""
        if block.dim % 4:
            raise block.unfit(f"{block.dim} channels do not divide by 4")
        block.expect(self.keep < 1, "keep", "all patches stay, and nothing is pruned")
        number, patches = block.siblings.index(block.role), block.together[0].entering or 0
        rate = self.keep ** (number + 1)
        left = int(rate * patches + 1e-9)
        block.expect(left, "keep", f"{rate:.2g} of {patches} patches are none")
        return rate, left

    def lower(self, site: Any, module: nn.Module) -> bool:
        """An argmax and an index-add; fused attention; training prunes too."""
        if isinstance(module, SqueezeSoftmax):
            site.drop()
            return True
        if isinstance(module, SqueezePredictor):
            hard = SqueezePredictor(module.dim, module.rate, module.prefix, hard=True)
            hard.predictor = frozen(module.predictor)
            site.swap(hard)
        elif isinstance(module, SqueezedTokens):
            old = module.rate, module.prefix, module.leads
            site.swap(SqueezedTokens(*old, hard=True, traced=module.traced))
        elif isinstance(module, SqueezedByClass):
            site.swap(SqueezedByClass(module.keep, module.prefix, True, module.traced))
        return False

    def errors(self, module: nn.Module, inputs: Any, outputs: Any) -> dict[str, float]:
        """Sizes come last of what is given, where tokens were made fewer before."""
        if not isinstance(module, (SqueezedTokens, SqueezedByClass)):
            return {}
        own = 4 if isinstance(module, SqueezedTokens) else 2
        before = inputs[own].float().sum(1) if len(inputs) > own else inputs[0].shape[1]
        lost = float((outputs[1].float().sum(1) - before).abs().max())
        return {"sizes of merged tokens sum to the number before": lost}

    def procedure(self) -> "FallingKeep | KeptTokens":
        """Rates that are met, and scores and tokens as they were; or a share that falls."""
        from vitrewrite.authoring import FallingKeep, KeptTokens

        if self.schedule == "cosine":
            return FallingKeep("squeeze.tps", self.start, self.length)
        return KeptTokens(
            "squeeze.tps",
            self.rate_loss,
            self.teacher_loss,
            self.token_loss,
            self.token_distance,
            self.backbone_lr,
        )
