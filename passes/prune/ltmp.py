"""Learned thresholds for merging and pruning (LTMP): tokens that are alike merge, idle ones go.

What it does
    Behind the attention of every block, tokens that are more alike than a threshold merge, and then
    those that get less attention than another one go. Two numbers a block are learned, so that a
    given share of the operations is left; how many tokens stay hangs on the image.

Source
    Bonnaerens and Dambre, "Learned Thresholds Token Merging and Pruning for Vision Transformers",
    TMLR 2023.

Attaches to
    Attentions of a model whose head reads a class token, those of all blocks as a rule.

Parameters
    Per block merge_threshold [1], 0.9 at first, and prune_threshold [1], zero at first. Trained.

Forward
    M [B, T] says which tokens are there; scores have + log size of their key, and their softmax is
    over tokens that are there: e / sum e with e = M exp(score - largest score), in training
    (e + eps / T) / (sum e + eps), eps = 1e-5
    m = mean over heads of k, m /= |m|, m *= M; A = tokens 0, 2, ...; B = tokens 1, 3, ...
    v, j = max, argmax of m_A m_B^T; I = mean over heads and queries of the weights that a key gets
    masker(v, t) = [s > 1/2] with the gradient of s = sigmoid((v - t) / tau), tau = 0.1
    Merge: u = masker(v, merge_threshold); M_A <- 1 - u where M_A; j(a) takes the mean by size, the
    size and the larger I of the tokens a with u = 1, without gradient through u
    Prune: M <- masker(I, prune_threshold) where M. Order: prefix, A, B; no token of the prefix
    merges or goes. All tokens run on, in evaluation too.
    Loss: 10 (rho - target)^2, rho the share of operations that the means of M leave; after a step
    thresholds are clamped to [0, 1].

Exactness
    Lowered, tokens go: v > merge_threshold, then I <= prune_threshold, each image with what it has
    left, in a batch padded to the longest with tokens of size 0, which nobody sees. That is the
    published form for inference, and another model than the masked one if it is in several blocks:
    there I averages over queries that are gone, and tokens that are gone count in what is even.

Example
    insert prune.ltmp(target=0.75) after blocks[*].attn
    adds 24 parameters to ViT-B/16.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from vitrewrite.authoring import AttentionSite, MaskedSoftmax, Pass, Picking, option

if TYPE_CHECKING:
    from .rate import ThresholdRate


class Matched(nn.Module):
    """Which tokens of one half of the patches are like which of the other half.

    `prefix` tokens in front are in no half, and `own` of them are the model's: these decide which
    of the others are at even positions.
    """

    def __init__(self, own: int) -> None:
        super().__init__()
        self.own = own

    def halves(self, x: torch.Tensor, prefix: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A and B of what has one row for each token, [B, T, ..]."""
        patches = x[:, prefix:]
        return patches[:, self.own % 2 :: 2], patches[:, 1 - self.own % 2 :: 2]

    def forward(
        self, k: torch.Tensor, there: torch.Tensor, prefix: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The largest cosine of each of A with one of B, [B, N_A], and which: by keys and M."""
        with torch.autocast("cpu" if k.is_meta else k.device.type, enabled=False):
            m = k.to(torch.promote_types(k.dtype, torch.float32)).mean(dim=1)
            m = m / m.norm(dim=-1, keepdim=True).clamp_min(1e-30)
            a, b = self.halves(m * there.detach()[..., None].to(m.dtype), prefix)
            if not b.shape[1]:
                return a.new_full(a.shape[:2], -1.0), there.new_zeros(a.shape[:2]).long()
            best = (a @ b.mT).max(dim=-1)
        return best.values, best.indices

    def larger(
        self, importance: torch.Tensor, goes: torch.Tensor, into: torch.Tensor, prefix: int
    ) -> torch.Tensor:
        """Importance [B, T] in the new order; who is merged into has the larger one."""
        a, b = self.halves(importance, prefix)
        given = torch.where(goes > 0.5, a, 0.0)
        b = b.scatter_reduce(1, into, given, reduce="amax") if b.shape[1] else b
        return torch.cat([importance[:, :prefix], a, b], dim=1)

    def merged(
        self,
        x: torch.Tensor,
        size: torch.Tensor,
        goes: torch.Tensor,
        into: torch.Tensor,
        prefix: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [B, T, C] and sizes in the new order; those that go are still there."""
        weight = size[..., None]
        both = torch.cat([x * weight, weight], dim=2)
        a, b = self.halves(both, prefix)
        if b.shape[1]:
            index = into[..., None].expand(-1, -1, both.shape[2])
            b = b.scatter_add(1, index, a * goes[..., None].to(a.dtype))
        both = torch.cat([both[:, :prefix], a, b], dim=1)
        # No gradient goes through what merges: sizes hang on no value.
        return both[..., :-1] / both[..., -1:].clamp_min(1e-6), both[..., -1].detach()

    def order(self, x: torch.Tensor, prefix: int) -> torch.Tensor:
        """Numbers of the tokens [B, T] in the new order."""
        number = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
        return torch.cat([number[:, :prefix], *self.halves(number, prefix)], dim=1)


class LearnedThresholds(nn.Module):
    """Decides by k [B, heads, T, d] and weights [B, T, T] which tokens merge, and which are there.

    Yields M [B, T] in the new order, which of A merge, [B, N_A], and into which of B.
    """

    inserted_by = "prune.ltmp"

    def __init__(
        self,
        prefix: int,
        own: int,
        dim: int,
        tau: float = 0.1,
        merge: float = 0.9,
        prune: float = 0.0,
    ) -> None:
        super().__init__()
        self.prefix, self.own, self.dim = prefix, own, dim
        self.tau, self.merge, self.prune = tau, merge, prune
        self.merge_threshold = nn.Parameter(torch.empty(1))
        self.prune_threshold = nn.Parameter(torch.empty(1))
        self.matched = Matched(own)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Thresholds as they are at first."""
        nn.init.constant_(self.merge_threshold, self.merge)
        nn.init.constant_(self.prune_threshold, self.prune)

    def forward(
        self,
        x: torch.Tensor,
        k: torch.Tensor,
        weights: torch.Tensor,
        there: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """M, what merges, and into what."""
        count, matched = x.shape[1], self.matched
        there = x.new_ones(x.shape[:2]) if there is None else there
        there = F.pad(there, (count - there.shape[1], 0), value=1.0)
        v, into = matched(k, there, self.prefix)
        u = self.masker(v, self.merge_threshold).to(there.dtype)
        goes = u.detach()
        a, b = matched.halves(there, self.prefix)
        front = there.new_ones(x.shape[0], self.prefix)
        mask = torch.cat([front, torch.where(a > 0.5, 1 - u, a), b], dim=1)
        importance = matched.larger(weights.mean(dim=1), goes, into, self.prefix)
        stays = self.masker(importance, self.prune_threshold).to(mask.dtype)
        mask = torch.where(mask > 0.5, stays, mask)
        return torch.cat([front, mask[:, self.prefix :]], dim=1), goes, into

    def masker(self, value: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
        """1 above the threshold, with the gradient of a sigmoid."""
        soft = torch.sigmoid((value - threshold.to(value.dtype)) / self.tau)
        hard: torch.Tensor = (value > threshold).to(soft.dtype)
        return hard + (soft - soft.detach())


class LearnedMerge(nn.Module):
    """Merges what goes into its match, and keeps all tokens: x [B, T, C] and sizes, in new order.

    Keys and weights are for what it is lowered to.
    """

    inserted_by = "prune.ltmp"
    changes = (0, None)

    def __init__(self, prefix: int, own: int, traced: bool = False) -> None:
        super().__init__()
        self.prefix, self.own, self.traced = prefix, own, traced
        self.matched = Matched(own)

    def forward(
        self,
        x: torch.Tensor,
        k: torch.Tensor,
        weights: torch.Tensor,
        goes: torch.Tensor,
        into: torch.Tensor,
        size: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """The tokens, and how many patches each stands for."""
        size = x.new_ones(x.shape[:2]) if size is None else size
        y, count = self.matched.merged(x, size, goes, into, self.prefix)
        y, count = y.to(x.dtype), count.to(size.dtype)
        return (y, count, *self.trace(goes, into, x)) if self.traced else (y, count)

    def trace(
        self, goes: torch.Tensor, into: torch.Tensor, x: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Where each token is now, [B, T], and whose position each takes."""
        kept, start = self.matched.order(x, self.prefix), self.prefix + goes.shape[1]
        now = torch.arange(x.shape[1], device=x.device).expand_as(kept)
        half = torch.where(goes > 0.5, into + start, now[:, self.prefix : start])
        now = torch.cat([now[:, : self.prefix], half, now[:, start:]], dim=1)
        return torch.empty_like(now).scatter(1, kept, now), kept


class LearnedReduction(nn.Module):
    """What merges or is idle goes: x [B, T, C] and sizes [B, T] shrink by what the images need.

    k is [B, heads, T, d], weights [B, T, T]. What stays is in front; images with fewer tokens than
    the longest one are padded with tokens of size 0, which are those of none before.
    """

    inserted_by = "prune.ltmp"
    changes = (0, None)

    def __init__(self, prefix: int, own: int, traced: bool = False) -> None:
        super().__init__()
        self.prefix, self.own, self.traced = prefix, own, traced
        self.merge_threshold = nn.Parameter(torch.empty(1))
        self.prune_threshold = nn.Parameter(torch.empty(1))
        self.matched, self.picking = Matched(own), Picking()
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Thresholds that let everything stay."""
        nn.init.constant_(self.merge_threshold, 1.0)
        nn.init.constant_(self.prune_threshold, 0.0)

    def forward(
        self,
        x: torch.Tensor,
        k: torch.Tensor,
        weights: torch.Tensor,
        size: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """The tokens that are left, and how many patches each stands for; 0 for none."""
        size = x.new_ones(x.shape[:2]) if size is None else size
        matched, there = self.matched, (size > 0).to(weights.dtype)
        v, into = matched(k, there, self.prefix)
        a, b = matched.halves(there, self.prefix)
        goes = ((v > self.merge_threshold) & (a > 0)).to(x.dtype)
        importance = (weights * there[..., None]).sum(1) / there.sum(1, keepdim=True)
        importance = matched.larger(importance, goes, into, self.prefix)
        y, count = matched.merged(x, size, goes, into, self.prefix)
        left = torch.cat([there[:, : self.prefix], a * (1 - goes.to(a.dtype)), b], dim=1) > 0
        idle = importance <= self.prune_threshold
        idle = torch.cat([torch.zeros_like(idle[:, : self.prefix]), idle[:, self.prefix :]], dim=1)
        kept, stays = self.gather(left & ~idle)
        y = self.picking(y, kept).to(x.dtype)
        count = torch.where(stays, count.gather(1, kept), 0.0).to(size.dtype)
        return (y, count, *self.trace(x, goes, into, kept, stays)) if self.traced else (y, count)

    def gather(self, left: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Numbers of what is left, [B, the most of an image], and which of them are there.

        How many that are hangs on the images: no compiler sees through this method.
        """
        order = (~left).to(torch.uint8).argsort(dim=1, stable=True)
        most = int(left.sum(dim=1).max()) if left.shape[0] and not left.is_meta else left.shape[1]
        kept = order[:, :most]
        return kept, left.gather(1, kept)

    def trace(
        self,
        x: torch.Tensor,
        goes: torch.Tensor,
        into: torch.Tensor,
        kept: torch.Tensor,
        stays: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Where each token is now, [B, T], or -1, and whose position each takes that is left."""
        old, start = self.matched.order(x, self.prefix), self.prefix + goes.shape[1]
        place = torch.arange(kept.shape[1], device=x.device).expand_as(kept)
        behind = torch.full_like(old, -1).scatter(1, kept, torch.where(stays, place, -1))
        moved = behind[:, self.prefix : start]
        target = behind.gather(1, into + start) if start < x.shape[1] else moved
        moved = torch.where(goes > 0.5, target, moved)
        now = torch.cat([behind[:, : self.prefix], moved, behind[:, start:]], dim=1)
        return torch.empty_like(now).scatter(1, old, now), old.gather(1, kept)


class ThereSoftmax(nn.Module):
    """A softmax over the keys of tokens that are there, [B, T]."""

    inserted_by = "prune.ltmp"
    changes = (0,)

    def __init__(self) -> None:
        super().__init__()
        self.soft, self.hard = MaskedSoftmax(1e-5, own=False), MaskedSoftmax(0.0, own=False)

    def forward(self, scores: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        """Weights [B, heads, T, T] of scores of that shape."""
        masked = self.soft if self.training else self.hard
        weights: torch.Tensor = masked(scores, there)
        return weights


@dataclass(frozen=True)
class LearnedTokens(Pass):
    """Merges and prunes by thresholds that are learned."""

    verbs: ClassVar[tuple[str, ...]] = ("insert after",)
    attaches: ClassVar[tuple[str, ...]] = ("attention",)
    source: ClassVar[str] = "Bonnaerens and Dambre, TMLR 2023"
    claims: ClassVar[tuple[str, ...]] = ("lowers_exactly",)
    reads: ClassVar[tuple[str, ...]] = ("prefix", "size")
    writes: ClassVar[tuple[str, ...]] = ("grid", "size")
    sole: ClassVar[str] = "pruner"

    target: float = option(0.75, above=0, maximum=1, help="share of the operations to be left")
    merge: float = option(0.9, above=0, maximum=1, help="threshold of merging at first")
    prune: float = option(0.0, minimum=0, maximum=1, help="threshold of pruning at first")
    tau: float = option(0.1, above=0, help="temperature of the sigmoid whose gradient is taken")
    rate_loss: float = option(10.0, minimum=0, help="weight of the share that is missed")
    merge_lr: float = option(5e-3, above=0, help="learning rate of thresholds of merging")
    prune_lr: float = option(5e-6, above=0, help="learning rate of thresholds of pruning")

    def rewrite(self, attn: AttentionSite) -> None:
        """M, u, j = decide(k, A, M); x, size = merge(x, u, j, size); softmax over M behind it."""
        attn.expect_sequence()
        attn.expect_free()
        attn.expect_class()
        block, point, before = attn.block, attn.block.mid, attn.all_handed
        if len(attn.siblings) > 1:
            block.waive("lowers_exactly", "tokens that are gone still count in the masked form")
        prefix, own = point.tokens.prefix, block.own_prefix
        decide = LearnedThresholds(prefix, own, block.dim, self.tau, self.merge, self.prune)
        given = attn.keys, attn.weights
        names = ("there", "goes", "into")
        last = not block.following
        there, goes, into = point.look_all(decide, *given, *before, names=names, by_loss=last)
        point.regroup(LearnedMerge(prefix, own), *given, goes, into, patches=None)
        point.state("in_scores", True, "")
        for each in block.following:
            each.attn.softmax(ThereSoftmax(), there)
            if each.attn.role in attn.siblings:
                break
        attn.hand_on(there)

    def lower(self, site: Any, module: nn.Module) -> bool:
        """Tokens go; what only masked them is read by nobody then."""
        if isinstance(module, ThereSoftmax):
            site.drop()
            return True
        if isinstance(module, LearnedMerge):
            made = LearnedReduction(module.prefix, module.own, module.traced)
            decide = site.beside_it(LearnedThresholds)
            made.merge_threshold = nn.Parameter(decide.merge_threshold.detach().clone())
            made.prune_threshold = nn.Parameter(decide.prune_threshold.detach().clone())
            made.requires_grad_(False)
            site.swap(made, given=(0, 1, 2, *range(5, site.given)))
        return False

    def procedure(self) -> "ThresholdRate":
        """The share of operations that is to be left."""
        from .rate import ThresholdRate

        return ThresholdRate(self.target, self.rate_loss, self.merge_lr, self.prune_lr)
