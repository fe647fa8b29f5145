"""LoRA: a trainable low-rank update of linear layers.

What it does
    Adds `s * up(down(x))` to the output of a frozen linear layer, or to the rows of a fused one.

Source
    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, equation 3.
    Conventions: `vtab` as in FPET and the VTAB tables, `spt` as in SPT (ICCV 2023), `library` as
    in common libraries.

Attaches to
    Any linear layer or 1x1 convolution of an attention or its feed-forward part; `q`, `k`, `v` are
    row ranges of a fused `qkv`, one for each head where these take turns. Several matrices in one
    layer share one product with x.

Parameters
    down [r, d_in]: Kaiming-uniform with a = sqrt(5), trained. up [d_out, r]: zero, trained.
    One pair per site, no biases. The scale s is fixed: `scale` as given (vtab, spt), or
    alpha / r, or alpha / sqrt(r) if `rank_stabilised` (library). It is never divided silently.

Forward
    y = W x + b + s * up(drop(down(x))). In training only: `vtab` drops the r-dimensional code,
    `spt` and `library` drop x; `spt` also drops the branch per sample (`drop_path`). With `spt` the
    input of an attention's `proj` is not dropped, and q, k and v see the same dropped x, whether
    they are one layer or three.

Exactness
    The model is unchanged at initialisation. Folds exactly: W += s * up @ down; other rows of a
    fused weight stay bit-identical.

Example
    insert lora(rank=8, scale=1.0) at blocks[*].attn.{q, v}
    adds 294,912 parameters to ViT-B/16; folded, it costs nothing.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from vitrewrite.authoring import LinearSite, LowRankUpdate, Pass, option


class LowRank(nn.Module):
    """A low-rank update of rows of a linear layer: y + scale * up(down(x)).

    Features lie on the last axis, or on `axis`, as those of a 1x1 convolution do.
    """

    inserted_by = "lora"
    changes = (1,)

    def __init__(
        self,
        in_features: int,
        rows: tuple[tuple[int, int], ...],
        rank: int,
        scale: float,
        dropout: float = 0.0,
        drop_input: bool = False,
        pieces: tuple[int, ...] = (),
        axis: int = -1,
    ) -> None:
        super().__init__()
        self.in_features, self.rows, self.rank, self.scale = in_features, rows, rank, scale
        self.dropout, self.drop_input, self.axis = dropout, drop_input, axis
        # How many of the ranges in `rows` are one matrix: one, unless the heads take turns.
        self.pieces = pieces
        self.down = nn.Parameter(torch.empty(len(pieces or rows) * rank, in_features))
        self.up = nn.Parameter(torch.empty(sum(b - a for a, b in rows), rank))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws `down` and zeroes `up`, so that the update starts at zero."""
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(self.up)

    def forward(
        self, x: torch.Tensor, y: torch.Tensor, keep: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The output y of the linear, updated; x is its input, `keep` a factor per sample."""
        given = y
        if self.axis != -1:
            x, y = x.movedim(self.axis, -1), y.movedim(self.axis, -1)
            keep = None if keep is None else keep.movedim(self.axis, -1)
        if self.drop_input:
            code = F.linear(F.dropout(x, self.dropout, self.training), self.down)
        else:
            code = F.dropout(F.linear(x, self.down), self.dropout, self.training)
        if keep is not None:
            code = code * keep.to(code.dtype)
        code, out = code.flatten(0, -2), y.flatten(0, -2)
        if torch.is_grad_enabled():  # all rows in one product
            wide = self.up.new_zeros(y.shape[-1], len(self.down))
            for (a, b), columns, up in self.parts():
                wide[a:b, columns] = up
            out = torch.addmm(out, code, wide.T, alpha=self.scale)
        else:
            out = out.clone()  # y is not ours: whoever called the linear layer may have kept it
            for (a, b), columns, up in self.parts():
                out[:, a:b].addmm_(code[:, columns], up.T.to(code.dtype), alpha=self.scale)
        out = out.view(y.shape)
        if self.axis == -1:
            return out
        return torch.empty_like(given).copy_(out.movedim(-1, self.axis))  # in memory as it was

    def parts(self) -> list[tuple[tuple[int, int], slice, torch.Tensor]]:
        """The ranges of rows, each with the columns of its code and the rows of `up` for it."""
        ups = torch.split(self.up, [b - a for a, b in self.rows])
        columns = (
            slice(i * self.rank, (i + 1) * self.rank)
            for i in (self.matrices() if self.pieces else range(len(self.rows)))
        )
        return list(zip(self.rows, columns, ups, strict=True))

    def matrices(self) -> list[int]:
        """For each range of rows the number of the matrix that it is of."""
        return [i for i, count in enumerate(self.pieces) for _ in range(count)]


@dataclass(frozen=True)
class Lora(Pass):
    """Low-rank adaptation."""

    verbs: ClassVar[tuple[str, ...]] = ("insert at",)
    attaches: ClassVar[tuple[str, ...]] = ("linear",)
    source: ClassVar[str] = "Hu et al., ICLR 2022"
    claims: ClassVar[tuple[str, ...]] = ("same_output_at_init", "lowers_exactly")

    rank: int = option(8, minimum=1, help="width of the bottleneck")
    convention: str = option(
        "vtab", choices=("vtab", "spt", "library"), help="where dropout sits and what scales"
    )
    scale: float | None = option(None, help="factor of the update; 1 by default (vtab, spt)")
    alpha: float | None = option(None, help="numerator of the scale (library)")
    rank_stabilised: bool = option(
        False, needs="convention == 'library'", help="alpha / sqrt(rank) instead of alpha / rank"
    )
    dropout: float = option(0.1, minimum=0, below=1, help="in training only")
    drop_path: float | None = option(
        None, minimum=0, below=1, help="per sample, in training only; 0.1 for spt, else 0"
    )

    def rewrite(self, linear: LinearSite) -> None:
        """y = W x + b becomes y = W x + b + s * up(down(x))."""
        self.check(linear)
        spt = self.convention == "spt"  # drops the input of all matrices but `proj`, q k v alike
        branch = LowRank(
            linear.in_features,
            tuple(piece for found in linear.ranges for piece in found),
            self.rank,
            self.factor(linear),
            dropout=0.0 if spt else self.dropout,
            drop_input=self.convention == "library",
            pieces=tuple(map(len, linear.ranges)) if linear.has_gaps else (),
            axis=linear.axis,
        )
        shared = self.dropout if spt and not linear.projects_heads else 0.0
        linear.parallel(branch, dropout=shared, drop_path=self.branch_drop)

    def lower(self, linear: LinearSite, branch: LowRank) -> bool:
        """W += s * up @ down."""
        wide = torch.promote_types(branch.up.dtype, torch.float32)
        pairs = [(t["up"].to(wide), t["down"].to(wide)) for t in self.delta(branch)]
        return linear.fold([branch.scale * up @ down for up, down in pairs])

    def cost(self, out_features: int, in_features: int) -> int:
        """Parameters at a matrix."""
        return self.rank * (in_features + out_features)

    def delta(self, branch: LowRank) -> list[dict[str, torch.Tensor]]:
        """The tensors of each site, as the method names them."""
        downs = torch.split(branch.down, branch.rank)
        sizes = [0] * len(downs)
        for (a, b), columns, _ in branch.parts():
            sizes[columns.start // branch.rank] += b - a
        ups = torch.split(branch.up, sizes)
        return [{"down": down, "up": up} for down, up in zip(downs, ups, strict=True)]

    def update(self, branch: LowRank) -> LowRankUpdate:
        """W x + s * up @ down @ x."""
        return LowRankUpdate(
            "down", "up", branch.scale, branch.dropout if branch.drop_input else 0.0
        )

    @property
    def branch_drop(self) -> float:
        """Probability of dropping the whole update of a sample."""
        if self.drop_path is not None:
            return self.drop_path
        return 0.1 if self.convention == "spt" else 0.0

    def factor(self, linear: LinearSite) -> float:
        """The scale s."""
        if self.convention != "library":
            if self.alpha is not None:
                raise linear.reject("alpha", f"{self.convention} takes scale, not alpha")
            return 1.0 if self.scale is None else self.scale
        if self.alpha is None or self.scale is not None:
            raise linear.reject("scale", "library takes alpha, not scale")
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)

    def check(self, linear: LinearSite) -> None:
        """The rank must be below the size of every matrix, the scale a number."""
        for part in linear.parts:
            size = min(part.in_features, part.out_features)
            shape = f"{part.in_features}x{part.out_features}"
            if self.rank >= size:
                raise linear.reject(
                    "rank",
                    f"rank {self.rank} is not below the size {shape}",
                    notes=[f"valid: 1..{size - 1}"],
                )
            if 2 * self.rank > size:
                linear.warn(f"rank {self.rank} is more than half the size of a matrix, {size}")
