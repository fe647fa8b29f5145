"""Bi-LoRA: LoRA whose matrices have few bits a number, one by default.

What it does
    Adds `s * up(down(x))` to rows of a frozen linear layer, as LoRA does, with `down` and `up`
    quantised while they are trained: what a task stores is 8 to 32 times smaller.

Source
    Jie, Wang, Deng, "Revisiting the Parameter Efficiency of Adapters from the Perspective of
    Precision Redundancy", ICCV 2023.

Attaches to
    Any linear layer or 1x1 convolution of an attention or its feed-forward part; in the paper q and
    v of every attention. Matrices that share a layer are quantised each by itself.

Parameters
    down [r, d_in]: Kaiming-uniform with a = sqrt(5). up [d_out, r]: truncated normal of std 1e-3
    within 2e-3, or zero with 32 bits. Both latent, in float32, and trained; r = 32, no biases. The
    scale s is fixed: the paper takes one of 0.01, 0.1, 1 and 10 by task.

Forward
    With mu and sg the mean and unbiased deviation of a matrix W, and n = (W - mu) / (sg + 1e-5),
    q is n rounded to the nearest of 2^bits levels, +-0.6745 for one bit;
    W' = (q + n - stop(n)) sg + mu;  y = W x + b + s * up'(drop(down' x)).
    mu and sg are differentiated, the rounding is passed straight through. In training numbers of
    the code are dropped.

Exactness
    Folds exactly: W += s * up' @ down'; other rows of a fused weight stay bit-identical. With less
    than 32 bits the model is changed a little at initialisation. 32 bits are LoRA.

Example
    insert bi.lora(rank=32, bits=1) at blocks[*].attn.{q, v}
    adds 1,179,648 parameters to ViT-B/16, which `vitrewrite pack` writes as 147,840 bytes.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from vitrewrite.authoring import LinearSite, Pass, Quantised, option


class QuantisedLowRank(nn.Module):
    """A low-rank update of rows of a linear layer, each matrix of few bits a number.

    Features lie on the last axis, or on `axis`, as those of a 1x1 convolution do.
    """

    inserted_by = "bi.lora"
    changes = (1,)

    def __init__(
        self,
        in_features: int,
        rows: tuple[tuple[int, int], ...],
        rank: int,
        scale: float,
        bits: int = 1,
        dropout: float = 0.0,
        pieces: tuple[int, ...] = (),
        axis: int = -1,
    ) -> None:
        super().__init__()
        self.in_features, self.rows, self.rank, self.scale = in_features, rows, rank, scale
        self.bits, self.dropout, self.axis = bits, dropout, axis
        # How many of the ranges in `rows` are one matrix: one, unless the heads take turns.
        self.pieces = pieces
        sizes = [sum(b - a for a, b in part) for part in self.parts()]
        self.down = nn.ModuleList(Quantised(rank, in_features, bits) for _ in sizes)
        self.up = nn.ModuleList(Quantised(size, rank, bits, small=True) for size in sizes)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws `down`, and `up` next to zero."""
        for matrix in self.modules():
            if isinstance(matrix, Quantised):
                matrix.reset_parameters(generator)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The output y of the linear, updated; x is its input."""
        given = y
        if self.axis != -1:
            x, y = x.movedim(self.axis, -1), y.movedim(self.axis, -1)
        made, end = [], 0
        for (start, stop), up, code in sorted(self.updates(x), key=lambda update: update[0]):
            changed = y[..., start:stop] + self.scale * F.linear(code, up.to(code.dtype))
            made += [y[..., end:start], changed]
            end = stop
        out = torch.cat([*made, y[..., end:]], dim=-1)
        if self.axis == -1:
            return out
        return torch.empty_like(given).copy_(out.movedim(-1, self.axis))  # in memory as it was

    def updates(self, x: torch.Tensor) -> list[tuple[tuple[int, int], torch.Tensor, torch.Tensor]]:
        """Ranges of rows, each with the rows of `up` for it and the code that they take."""
        found = []
        for part, down, up in zip(self.parts(), self.down, self.up, strict=True):
            code = F.dropout(F.linear(x, down().to(x.dtype)), self.dropout, self.training)
            pieces = torch.split(up(), [b - a for a, b in part])
            found += [(rows, piece, code) for rows, piece in zip(part, pieces, strict=True)]
        return found

    def parts(self) -> list[list[tuple[int, int]]]:
        """The ranges of each matrix."""
        rows = iter(self.rows)
        return [[next(rows) for _ in range(n)] for n in self.pieces or (1,) * len(self.rows)]


@dataclass(frozen=True)
class BiLora(Pass):
    """Low-rank adaptation of few bits."""

    verbs: ClassVar[tuple[str, ...]] = ("insert at",)
    attaches: ClassVar[tuple[str, ...]] = ("linear",)
    source: ClassVar[str] = "Jie et al., ICCV 2023"
    claims: ClassVar[tuple[str, ...]] = ("lowers_exactly",)

    rank: int = option(32, minimum=1, help="width of the bottleneck")
    bits: int = option(1, choices=(1, 2, 4, 8, 32), help="of a number; 32 are floats as they are")
    scale: float = option(1.0, help="fixed factor of the update")
    dropout: float = option(0.1, minimum=0, below=1, help="of the code, in training only")

    def rewrite(self, linear: LinearSite) -> None:
        """y = W x + b becomes y = W x + b + s * up'(down'(x))."""
        self.check(linear)
        rows = tuple(piece for found in linear.ranges for piece in found)
        pieces = tuple(map(len, linear.ranges)) if linear.has_gaps else ()
        options = self.rank, self.scale, self.bits, self.dropout, pieces, linear.axis
        linear.parallel(QuantisedLowRank(linear.in_features, rows, *options))

    def lower(self, linear: LinearSite, update: QuantisedLowRank) -> bool:
        """W += s * up' @ down'."""
        pairs = zip(update.up, update.down, strict=True)
        return linear.fold([update.scale * up() @ down() for up, down in pairs])

    def cost(self, out_features: int, in_features: int) -> int:
        """Parameters at a matrix."""
        return self.rank * (in_features + out_features)

    def delta(self, update: QuantisedLowRank) -> list[dict[str, torch.Tensor]]:
        """The latent tensors of each site, as the method names them."""
        downs, ups = (
            [m.get_parameter("weight") for m in each] for each in (update.down, update.up)
        )
        return [{"down": down, "up": up} for down, up in zip(downs, ups, strict=True)]

    def check(self, linear: LinearSite) -> None:
        """The rank must be at most the size of every matrix, and none of them one number."""
        for part in linear.parts:
            size = min(part.in_features, part.out_features)
            shape = f"{part.in_features}x{part.out_features}"
            linear.expect(
                self.rank <= size,
                "rank",
                f"rank {self.rank} is above the size {shape}",
                notes=[f"valid: 1..{size}"],
            )
            one = "a matrix of one number has no deviation"
            linear.expect(self.bits == 32 or self.rank * size > 1, "rank", one)
            if 2 * self.rank > size:
                linear.warn(f"rank {self.rank} is more than half the size of a matrix, {size}")
