"""Bipartite differentiable matching (FPET): half of the patch tokens merge once, mid-model.

What it does
    Behind the attention of one block, every token of one half of a checkerboard merges into its
    best match in the other half. The matching is trained through a straight-through estimator by
    a small adapter on the keys; later attentions know how many patches a token stands for.

Source
    Kim et al., "Faster Parameter-Efficient Tuning with Token Redundancy Reduction", CVPR 2025.

Attaches to
    The attention of one block that sees the full grid of patches; `blocks[6]` of 12.

Parameters
    refine.down.weight [h, d], Kaiming-uniform; refine.up.weight [d, h], truncated normal of std
    1e-3 within 2e-3, or zeros with 32 bits. Latent, in float32, and trained. d is the width of a
    head, h = 32. None without refine, and none of match=bsm.

Forward
    m = stop(mean over heads of k); m += s up relu(down m); m /= |m|        cosine, as in the code
    A = (even, even), (odd, odd); B = (odd, even), (even, odd) of the grid, row by row; with
    split=row A = patches 1, 3, ..., B = patches 0, 2, ... in row-major order
    S = m_A m_B^T; c = mean of the two largest of a row; G = sigmoid(S - c)
    W = G + stop(H - G), where H is one at the largest of each row; match=bsm: W = stop(H), no up
    size' = size_B + W^T size_A; x' = (size_B x_B + W^T (size_A x_A)) / size'
    Prefix tokens stay in front and take nothing. Later scores get + log size' of their key, and
    with prop_pool means over tokens in front of the head weigh each by size'.
    Weights of few bits are used on levels, with 1 bit mean -+ 0.6745 std, straight through the
    rounding, mean and std differentiated. stop=false lets the gradient of S into the keys.

Exactness
    T = 1 + N tokens become 1 + floor(N / 2). Lowers to an argmax and an index-add; the matching is
    in float32 or better whatever the model is in. H is [G > 1/2] as published, except on ties: of
    equally good matches the first is taken, where G > 1/2 has none and deletes the token. A key
    that is zero has cosine zero with all others. Sizes have the gradient of W, none with bsm: later
    attentions are not fused on the CPU while it is asked for, and differ by rounding.

Example
    insert merge.bdm() after blocks[6].attn
    adds 4,096 parameters; ViT-B/16 costs 13.41 GMAC instead of 17.56, and 0.009 for the matching.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from vitrewrite.authoring import AttentionSite, BlockSite, Pass, Quantised, Rung, option


class BipartiteMerge(nn.Module):
    """Merges one half of the patches into the other: x [B, T, C] and sizes [B, T] shrink.

    The last tokens are the patches of the grid, row by row; k is [B, heads, T, d]. Once `hard`,
    matches are found by argmax and merged by index-add. If `traced`, it tells in which token each
    is now, [B, T], and which took their places, [B, T'].
    """

    inserted_by = "merge.bdm"
    changes = (0, None)
    a: torch.Tensor
    b: torch.Tensor

    def __init__(
        self,
        grid: tuple[int, int],
        dim: int,
        hidden: int = 32,
        bits: int = 1,
        scale: float = 1.0,
        dropout: float = 0.1,
        split: str = "checkerboard",
        refine: bool = True,
        stop: bool = True,
        hard: bool = False,
        traced: bool = False,
    ) -> None:
        super().__init__()
        self.grid, self.dim, self.hidden, self.hard = grid, dim, hidden, hard
        self.bits, self.scale, self.dropout = bits, scale, dropout
        self.split, self.refine, self.stop, self.traced = split, refine, stop, traced
        self.down = self.up = None
        if refine:
            self.down = Quantised(hidden, dim, bits)
            self.up = Quantised(dim, hidden, bits, small=True)
        number = torch.arange(grid[0] * grid[1]).view(grid)
        if split == "row":
            a, b = [number.flatten()[1::2]], [number.flatten()[::2]]
        else:
            a, b = [number[::2, ::2], number[1::2, 1::2]], [number[1::2, ::2], number[::2, 1::2]]
        self.register_buffer("a", torch.cat([part.flatten() for part in a]), persistent=False)
        self.register_buffer("b", torch.cat([part.flatten() for part in b]), persistent=False)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws the adapter so that it changes little or nothing."""
        if self.down is not None and self.up is not None:
            self.down.reset_parameters(generator)
            self.up.reset_parameters(generator)

    def forward(
        self, x: torch.Tensor, k: torch.Tensor, size: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """The merged tokens, and how many patches each stands for."""
        prefix = x.shape[1] - self.grid[0] * self.grid[1]
        size = self.wide(x.new_ones(x.shape[:2])) if size is None else size
        with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
            scores = self.match(k[:, :, prefix:])
            weight = self.wide(size[:, prefix:, None])
            both = torch.cat([weight * self.wide(x[:, prefix:]), weight], dim=2)
            merge = self.merge_hard if self.hard else self.merge_soft
            both = merge(scores, both[:, self.a], both[:, self.b])
            patches, count = both[..., :-1] / both[..., -1:], both[..., -1]
            if self.hard:  # sizes hang on no value; a mask with a gradient would not be fused
                count = count.detach()
        x = torch.cat([x[:, :prefix], patches.to(x.dtype)], dim=1)
        size = torch.cat([size[:, :prefix], count.to(size.dtype)], dim=1)
        return (x, size, *self.trace(scores, prefix)) if self.traced else (x, size)

    def trace(self, scores: torch.Tensor, prefix: int) -> tuple[torch.Tensor, torch.Tensor]:
        """In which token each is, and which are kept."""
        number = torch.arange(prefix + len(self.b), device=scores.device)
        number = number.expand(scores.shape[0], -1)
        order = torch.cat([self.a, self.b]).argsort()
        into = torch.cat([scores.argmax(dim=-1) + prefix, number[:, prefix:]], dim=1)[:, order]
        kept = torch.cat([number[:, :prefix], (self.b + prefix).expand(scores.shape[0], -1)], dim=1)
        return torch.cat([number[:, :prefix], into], dim=1), kept

    def match(self, k: torch.Tensor) -> torch.Tensor:
        """Cosines of A and B, [B, N_A, N_B]; once `stop`, no gradient reaches the keys."""
        m = self.wide(k.detach() if self.stop else k).mean(dim=1)
        if self.down is not None and self.up is not None:
            code = F.relu(F.linear(m, self.down().to(m.dtype)))
            code = F.dropout(code, self.dropout, self.training)
            m = m + self.scale * F.linear(code, self.up().to(m.dtype))
        m = F.normalize(m, dim=-1, eps=1e-30)
        return torch.bmm(m[:, self.a], m[:, self.b].transpose(1, 2))

    def merge_soft(self, scores: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """b + W^T a, with W the match made hard and the gradient of the sigmoid."""
        gate = torch.sigmoid(scores - scores.topk(2, dim=-1).values.mean(dim=-1, keepdim=True))
        best = torch.zeros_like(gate).scatter(-1, scores.argmax(dim=-1, keepdim=True), 1.0)
        chosen = gate + (best - gate).detach()
        return b + chosen.transpose(1, 2) @ a

    def merge_hard(self, scores: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """b with every row of a added to its best match."""
        first = torch.arange(b.shape[0], device=b.device)[:, None] * b.shape[1]
        into = (scores.argmax(dim=-1) + first).flatten()
        return b.flatten(0, 1).index_add(0, into, a.flatten(0, 1)).view_as(b)

    def wide(self, x: torch.Tensor) -> torch.Tensor:
        """In float32 or better."""
        return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True)
class BipartiteDifferentiableMatching(Pass):
    """Merges half of the patches behind one attention."""

    verbs: ClassVar[tuple[str, ...]] = ("insert after",)
    attaches: ClassVar[tuple[str, ...]] = ("attention",)
    source: ClassVar[str] = "Kim et al., CVPR 2025"
    claims: ClassVar[tuple[str, ...]] = (
        "lowers_exactly",
        "sizes of merged tokens sum to the number before",
    )
    reads: ClassVar[tuple[str, ...]] = ("prefix", "grid", "size")
    writes: ClassVar[tuple[str, ...]] = ("grid", "size")

    hidden: int = option(
        32, minimum=1, needs="refine and match == 'bdm'", help="width of the adapter on the keys"
    )
    bits: int = option(
        1,
        choices=(1, 2, 4, 8, 32),
        needs="refine and match == 'bdm'",
        help="of a number of its weights; 32 are floats as they are",
    )
    scale: float = option(1.0, needs="refine and match == 'bdm'", help="factor of the adapter")
    dropout: float = option(
        0.1, minimum=0, below=1, needs="refine and match == 'bdm'", help="in it, in training only"
    )
    split: str = option(
        "checkerboard",
        choices=("checkerboard", "row"),
        help="which patches merge: every other one of the grid, or of its row-major order (ToMe)",
    )
    match: str = option(
        "bdm", choices=("bdm", "bsm"), help="differentiable, or (bsm) hard and without gradient"
    )
    refine: bool = option(True, needs="match == 'bdm'", help="an adapter on the keys is trained")
    stop: bool = option(
        True, needs="match == 'bdm'", help="no gradient of the matching reaches the keys"
    )
    prop_attn: bool = option(True, help="later attentions know how many patches a token stands for")
    prop_pool: bool = option(False, help="and so do means over tokens in front of the head")

    macs: float | None = option(
        None, above=0, help="MACs that the model is to have: the block that comes nearest is chosen"
    )

    def ladder(self, sites: int, patches: int, /) -> list[Rung]:
        """One block of those selected."""
        return [Rung(at=place) for place in reversed(range(sites))]

    def rewrite(self, attn: AttentionSite) -> None:
        """x, size = merge(x, k); later scores + log size."""
        point, grid = attn.block.mid, self.grid(attn)
        refine, hard = self.refine and self.match == "bdm", self.match == "bsm"
        count = self.hidden * attn.head_dim[0]
        one = "a matrix of one number has no deviation"
        attn.expect(not refine or self.bits == 32 or count > 1, "hidden", one)
        merge = BipartiteMerge(
            grid,
            attn.head_dim[0],
            self.hidden,
            self.bits,
            self.scale,
            self.dropout,
            self.split,
            refine,
            self.stop,
            hard,
        )
        if hard:
            attn.block.waive("lowers_exactly", "a hard match is as cheap as it can be")
        point.regroup(merge, attn.keys, patches=len(merge.b))
        point.state("in_scores", self.prop_attn, "prop_attn")
        point.state("in_pooling", self.prop_pool, "prop_pool")
        if not attn.block.following:
            attn.idle("prop_attn", "in the last block: no attention follows")

    def lower(self, block: BlockSite, merge: BipartiteMerge) -> bool:
        """Argmax and index-add; the adapter's weights as they are used."""
        if merge.hard:
            return False
        hard = BipartiteMerge(
            merge.grid,
            merge.dim,
            merge.hidden,
            bits=32,
            scale=merge.scale,
            dropout=0.0,
            split=merge.split,
            refine=merge.refine,
            hard=True,
        )
        for name in ("down", "up") if merge.refine else ():
            weight = getattr(merge, name)()
            getattr(hard, name).weight = nn.Parameter(weight, requires_grad=False)
        block.swap(hard)
        return False

    def delta(self, merge: BipartiteMerge) -> list[dict[str, torch.Tensor]]:
        """The adapter as the method names it."""
        known = {"down": merge.down, "up": merge.up}
        return [{f"refine.{n}.weight": m.weight for n, m in known.items() if m is not None}]

    def grid(self, attn: AttentionSite) -> tuple[int, int]:
        """The patches at the block, which must be two in each half at least."""
        height, width = attn.full_grid
        if height * width < 4:
            raise attn.unfit(f"a grid of {height}x{width} has too few patches")
        if not attn.block.following:
            attn.warn("a merge in the last block only makes its feed-forward part cheaper")
        if attn.dtype != torch.float32:
            attn.warn(f"keys in {attn.dtype} can tie: of equally good matches the first is taken")
        if attn.block.pooled and not self.prop_pool:
            attn.warn("the head pools tokens, and merged ones count once; see prop_pool")
        return height, width
