"""Row-column decoupled attention (RCDA): a map is attended to by its columns, then by its rows.

What it does
    Replaces a cross-attention to a feature map: a query weighs columns and rows apart, and the
    weight of a pixel is the product of the two. The baseline that HRCA is compared with.

Source
    Wang et al., "Anchor DETR: Query Design for Transformer-Based Detector", AAAI 2022, from its
    formulas.

Attaches to
    The cross-attention of layers of Mask2Former's decoder: `decoder.layers[2].cross_attn`.

Parameters
    q_x, q_y, k_x, k_y, v, out: Linear(C, C) each, where the attention had four. Matrices
    U(-b, b) with b = 1 / sqrt(C): the first five are one Xavier-uniform matrix [5 C, C] in the
    authors' code, and `out` is drawn as torch's linear layers. Zero biases. Trained.

Forward
    k_x[w] = mean over rows of K + positions; k_y[h] = mean over columns of K + positions
    A_x = softmax(q_x k_x^T / sqrt(d)); A_y = softmax(q_y k_y^T / sqrt(d))          per head
    y = out(sum_h A_y[h] sum_w A_x[w] V[h, w]), the longer side summed first
    There is no mask: the masks of the layer are no longer used.

Exactness
    Changes the output. Nothing folds.

Example
    replace decoder.layers[2].cross_attn with rcda()
    adds 131,584 parameters to a layer of Mask2Former.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from vitrewrite.authoring import AttentionSite, Pass


class RowColumnAttention(nn.Module):
    """Queries [Q, B, C] attend to keys and values [H W, B, C]; `like` is a map [B, ..., H, W]."""

    inserted_by = "rcda"
    attends = True

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.dim, self.heads = dim, heads
        self.q_x, self.q_y = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.k_x, self.k_y = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.v, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws matrices from U(-b, b), b = 1 / sqrt(C), and zeroes biases."""
        bound = self.dim**-0.5
        for layer in (self.q_x, self.q_y, self.k_x, self.k_y, self.v, self.out):
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, like: torch.Tensor
    ) -> torch.Tensor:
        """[Q, B, C]."""
        height, width = like.shape[-2:]
        key = key.view(height, width, -1, self.dim)
        a_x = self.weights(self.q_x(query), self.k_x(key.mean(0)))
        a_y = self.weights(self.q_y(query), self.k_y(key.mean(1)))
        v = self.split(self.v(value))
        v = v.view(v.shape[0], self.heads, height, width, v.shape[3])
        if width >= height:
            rows = torch.einsum("bnqw,bnhwd->bnqhd", a_x, v)
            y = torch.einsum("bnqh,bnqhd->qbnd", a_y, rows)
        else:
            columns = torch.einsum("bnqh,bnhwd->bnqwd", a_y, v)
            y = torch.einsum("bnqw,bnqwd->qbnd", a_x, columns)
        found: torch.Tensor = self.out(y.flatten(2))
        return found

    def weights(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Softmax over one side, [B, heads, Q, side]."""
        q, k = self.split(query), self.split(key)
        return torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(self.dim // self.heads), dim=-1)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """[N, B, C] to [B, heads, N, d]."""
        return x.reshape(x.shape[0], x.shape[1], self.heads, -1).permute(1, 2, 0, 3)


@dataclass(frozen=True)
class RowColumnDecoupledAttention(Pass):
    """Attention to columns and to rows of a map in place of one to its pixels."""

    verbs: ClassVar[tuple[str, ...]] = ("replace",)
    attaches: ClassVar[tuple[str, ...]] = ("attention",)
    source: ClassVar[str] = "Wang et al., AAAI 2022"
    claims: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ("layers",)

    def rewrite(self, attn: AttentionSite) -> None:
        """y = rcda(query, key, value) on the map of the layer's level."""
        level = attn.layer.level
        if not attn.layer.decoder.queries:
            raise attn.unfit("its decoder has no queries")
        if not attn.layer.whole:
            raise attn.unfit("it attends to a selection of pixels, which has no rows and columns")
        if min(level.grid) < 2:
            raise attn.unfit(f"a map of {level.grid[0]}x{level.grid[1]} has one row or column")
        if attn.masked:
            attn.warn("masks block no pixel of a layer with rcda")
        module = RowColumnAttention(attn.dim, attn.heads)
        attn.become(module, level.position_map, keep=False)
