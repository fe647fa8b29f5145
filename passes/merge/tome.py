"""Token merging (ToMe): the most similar pairs of tokens merge in every block, without training.

What it does
    Behind the attention of a block, tokens at even positions are matched with tokens at odd ones,
    and the r best matches merge into their mean. Later attentions, and means over tokens in front
    of the head, know how many patches a token stands for.

Source
    Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023.

Attaches to
    Attentions over one sequence of tokens, those of all blocks as a rule.

Parameters
    None.

Forward
    m = mean over heads of k, m /= |m|; no gradient through the matching
    A = tokens 0, 2, ...; B = tokens 1, 3, ...; S = m_A m_B^T, without the tokens of the prefix
    the r tokens of A with the largest max S merge into their best match b; r <= (T - prefix) / 2
    size'_b = size_b + sum size_a; x'_b = (size_b x_b + sum size_a x_a) / size'_b
    Order: prefix, what stays of A, B. What stays is in order of position; in a model without class
    token in descending order of max S. Later scores get + log size' of their key, and means over
    tokens weigh each by size'; an attention that pools gets + log size', too. Prompts are prefix,
    and do not count in what is even.
    Of L blocks, block i merges r at inflection 0; r_i = int(lo + i (hi - lo) / (L - 1)) else, with
    lo = int(r (1 - inflection)), hi = 2 r - lo. A list says r block by block, and then 0.

Exactness
    T tokens become T - r. Lowers to an index-select and an index-add. The matching is in float32
    or better whatever the model is in; of equally good matches the first is taken, where the
    published order is the machine's. A key that is zero has cosine zero with all others.

Example
    insert merge.tome(r=8) after blocks[*].attn
    ViT-B/16 costs 13.11 GMAC instead of 17.56; 101 tokens are left.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from vitrewrite.authoring import AttentionSite, BlockSite, Pass, Rung, option


class TokenMerge(nn.Module):
    """Merges r pairs of similar tokens: x [B, T, C] and sizes [B, T] shrink to T - r.

    k is [B, heads, T, d]. `prefix` tokens in front never merge, and `own` of them are the model's:
    these decide which of the others are at even positions. Once `flat`, tokens of all images are
    rows of one matrix, and those that merge are added to what is picked. If `traced`, it tells in
    which token each is now, [B, T], and which took their places, [B, T - r].
    """

    inserted_by = "merge.tome"
    changes = (0, None)

    def __init__(
        self, r: int, prefix: int, own: int, flat: bool = False, traced: bool = False
    ) -> None:
        super().__init__()
        self.r, self.prefix, self.own = r, prefix, own
        self.flat, self.traced = flat, traced

    def forward(
        self, x: torch.Tensor, k: torch.Tensor, size: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """The merged tokens, and how many patches each stands for."""
        size = self.wide(x.new_ones(x.shape[:2])) if size is None else size
        number = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
        r = min(self.r, (x.shape[1] - self.prefix) // 2)
        if r < 1:
            return (x, size, number, number) if self.traced else (x, size)
        with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
            found = self.match(k, r)
            combine = self.rows if self.flat else self.tokens
            y, count = combine(self.wide(x), self.wide(size), *found)
        made = y.to(x.dtype), count.to(size.dtype)
        return (*made, *self.trace(number, *found)) if self.traced else made

    def match(self, k: torch.Tensor, r: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What stays of A, [B, N_A - r], what goes, [B, r], and into which of B."""
        m = self.wide(k[:, :, self.prefix :].detach()).mean(dim=1)
        m = m / m.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        best, into = (m[:, self.own % 2 :: 2] @ m[:, 1 - self.own % 2 :: 2].mT).max(dim=-1)
        order = best.argsort(dim=-1, descending=True, stable=True)
        stays, goes = order[:, r:], order[:, :r]
        return stays.sort(dim=-1).values if self.own else stays, goes, into.gather(1, goes)

    def tokens(
        self,
        x: torch.Tensor,
        size: torch.Tensor,
        stays: torch.Tensor,
        goes: torch.Tensor,
        into: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums of the tokens that merge, weighed by size, over the sums of the sizes."""
        weight = size[..., None]
        both = self.sums(torch.cat([x * weight, weight], dim=2), stays, goes, into)
        # Sizes hang on no value; a mask that asks for a gradient would cost the fused attention.
        return both[..., :-1] / both[..., -1:], both[..., -1].detach()

    def sums(
        self, x: torch.Tensor, stays: torch.Tensor, goes: torch.Tensor, into: torch.Tensor
    ) -> torch.Tensor:
        """Prefix, what stays of A, and B with what goes added: [B, T - r, C]."""
        front, patches = x[:, : self.prefix], x[:, self.prefix :]
        a, b = patches[:, self.own % 2 :: 2], patches[:, 1 - self.own % 2 :: 2]
        stays, goes, into = (i[..., None].expand(-1, -1, x.shape[2]) for i in (stays, goes, into))
        kept = a.gather(1, stays), b.scatter_add(1, into, a.gather(1, goes))
        return torch.cat([front, *kept], dim=1)

    def places(
        self, number: torch.Tensor, stays: torch.Tensor, goes: torch.Tensor, into: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """By number of a token: those that are kept, in order, those that go, and into which."""
        front, patches = number[:, : self.prefix], number[:, self.prefix :]
        a, b = patches[:, self.own % 2 :: 2], patches[:, 1 - self.own % 2 :: 2]
        kept = torch.cat([front, a.gather(1, stays), b], dim=1)
        return kept, a.gather(1, goes), into + (self.prefix + stays.shape[1])

    def trace(
        self, number: torch.Tensor, stays: torch.Tensor, goes: torch.Tensor, into: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """In which token each is, and which are kept."""
        kept, goes, into = self.places(number, stays, goes, into)
        behind = number[:, : kept.shape[1]]
        return number.scatter(1, kept, behind).scatter(1, goes, into), kept

    def rows(
        self,
        x: torch.Tensor,
        size: torch.Tensor,
        stays: torch.Tensor,
        goes: torch.Tensor,
        into: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same with what changes only: each token by its share of the new size."""
        batch, count = x.shape[:2]
        number = torch.arange(count, device=x.device).expand(batch, -1)
        kept, goes, into = self.places(number, stays, goes, into)
        old, gone = size.gather(1, kept), size.gather(1, goes)
        new = old.scatter_add(1, into, gone)
        image = torch.arange(batch, device=x.device)[:, None]
        flat, kept, goes = x.flatten(0, 1), kept + image * count, goes + image * count
        y = flat.index_select(0, kept.flatten()) * (old / new).view(-1, 1)
        more = flat.index_select(0, goes.flatten()) * (gone / new.gather(1, into)).view(-1, 1)
        y = y.index_add_(0, (into + image * new.shape[1]).flatten(), more)
        return y.view(*new.shape, x.shape[2]), new

    def wide(self, x: torch.Tensor) -> torch.Tensor:
        """In float32 or better."""
        return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True)
class TokenMerging(Pass):
    """Merges the most similar tokens in every block."""

    verbs: ClassVar[tuple[str, ...]] = ("insert after",)
    attaches: ClassVar[tuple[str, ...]] = ("attention",)
    source: ClassVar[str] = "Bolya et al., ICLR 2023"
    claims: ClassVar[tuple[str, ...]] = (
        "lowers_exactly",
        "sizes of merged tokens sum to the number before",
    )
    reads: ClassVar[tuple[str, ...]] = ("prefix", "size")
    writes: ClassVar[tuple[str, ...]] = ("grid", "size")

    r: int = option(
        8, minimum=0, rest=0, help="pairs that merge in a block; as a list block by block, then 0"
    )
    inflection: float = option(
        0.0, minimum=-1, maximum=1, needs="r", help="-1: from 2 r down to none; 1: from none up"
    )
    prop_attn: bool = option(True, help="later attentions know how many patches a token stands for")
    prop_pool: bool = option(True, help="and so do means over tokens in front of the head")

    macs: float | None = option(
        None, above=0, help="MACs that the model is to have: r is chosen to come nearest"
    )

    def ladder(self, sites: int, patches: int, /) -> list[Rung]:
        """One r for all blocks, from none to as many as can merge in the first."""
        return [Rung({"r": r}) for r in range(patches // 2 + 1)]

    def rewrite(self, attn: AttentionSite) -> None:
        """x, size = merge(x, k, size); later scores + log size; pooled by size."""
        attn.expect_sequence()
        attn.expect_free()
        point, r = attn.block.mid, self.pairs(attn)
        merge = TokenMerge(r, point.tokens.prefix, attn.block.own_prefix)
        if r:
            point.regroup(merge, attn.keys, patches=self.left(attn, r))
        point.state("in_scores", self.prop_attn, "prop_attn")
        point.state("in_pooling", self.prop_pool, "prop_pool")

    def lower(self, block: BlockSite, merge: TokenMerge) -> bool:
        """An index-select of what stays and an index-add of what goes."""
        block.swap(TokenMerge(merge.r, merge.prefix, merge.own, flat=True))
        return False

    def pairs(self, attn: AttentionSite) -> int:
        """How many are to merge in this block of those that the clause names."""
        i, last = attn.siblings.index(attn.role), len(attn.siblings) - 1
        low = int(self.r * (1 - self.inflection))
        return self.r if last < 1 else int(low + i * (2 * self.r - 2 * low) / last)

    def left(self, attn: AttentionSite, r: int) -> int:
        """How many patches stay."""
        patches = attn.block.mid.tokens.patches or 0
        if patches < 2 * r:
            attn.warn("r is more than half of the patches that are left: only half of them merge")
        return patches - min(r, patches // 2)
