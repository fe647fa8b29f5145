"""The modules of SynQT: the synthesis of queries, the layers they pass, and what the head reads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class SynthesisAdapter(nn.Module):
    """Ad(x) = x + up GELU(down x)."""

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.down = nn.Linear(dim, hidden)
        self.up = nn.Linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of rows [.., dim]."""
        hidden = F.dropout(F.gelu(self.down(x)), self.dropout, self.training)
        return x + F.dropout(self.up(hidden), self.dropout, self.training)


class FeatureScale(nn.Module):
    """One number, which all blocks share."""

    inserted_by = "synqt"

    def __init__(self, start: float) -> None:
        super().__init__()
        self.start = start
        self.scale = nn.Parameter(torch.full((1,), start))

    def forward(self) -> torch.Tensor:
        """The number, [1]."""
        return self.scale


class QuerySynthesis(nn.Module):
    """The queries of a block, of what those of the block before found; the first have none.

    With `fixed` the three scales are that number.
    """

    inserted_by = "synqt"

    def __init__(
        self,
        count: int,
        dim: int,
        hidden: int,
        narrow: int,
        first: bool,
        attn_start: float,
        ffn_start: float,
        fixed: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.count, self.dim, self.hidden, self.narrow = count, dim, hidden, narrow
        self.first, self.fixed, self.dropout = first, fixed, dropout
        self.attn_start, self.ffn_start = attn_start, ffn_start
        self.query = nn.Parameter(torch.zeros(count, dim))
        self.in_adapter = SynthesisAdapter(dim, hidden, dropout)
        self.pre_attn_norm = nn.LayerNorm(dim)
        self.attn_q_norm = nn.LayerNorm(dim)
        self.attn_kv_norm = nn.LayerNorm(dim)
        self.attn_q = SynthesisAdapter(dim, narrow)
        self.attn_k = SynthesisAdapter(dim, narrow)
        self.attn_v = SynthesisAdapter(dim, narrow)
        self.attn_o = SynthesisAdapter(dim, narrow)
        self.pre_ffn_norm = nn.LayerNorm(dim)
        self.ffn_adapter = SynthesisAdapter(dim, hidden, dropout)
        if fixed is None:
            self.attn_scale = nn.Parameter(torch.full((1,), attn_start))
            self.ffn_scale = nn.Parameter(torch.full((1,), ffn_start))

    def forward(
        self,
        x: torch.Tensor,
        found: torch.Tensor | None = None,
        scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The queries [batch, count, dim] for as many images as x has; `found` likewise."""
        rows = self.query.to(x.dtype).expand(x.shape[0], -1, -1)
        p = F.dropout(rows, self.dropout, self.training)
        if found is not None:
            mean = found.mean(1, keepdim=True)
            p = p + (mean * scale if scale is not None else mean * (self.fixed or 0.0))
        p = self.in_adapter(p)
        attended, fixed = self.attended(self.pre_attn_norm(p)), self.fixed
        p = p + (attended * self.attn_scale if fixed is None else attended * fixed)
        fed = self.ffn_adapter(self.pre_ffn_norm(p))
        made: torch.Tensor = p + (fed * self.ffn_scale if fixed is None else fed * fixed)
        return made

    def attended(self, u: torch.Tensor) -> torch.Tensor:
        """Attention of one head among the queries."""
        a, c = self.attn_q_norm(u), self.attn_kv_norm(u)
        drop = self.dropout if self.training else 0.0
        made = F.scaled_dot_product_attention(
            self.attn_q(a), self.attn_k(c), self.attn_v(c), dropout_p=drop
        )
        return F.dropout(self.attn_o(made), self.dropout, self.training)


class FixedQueries(nn.Module):
    """Queries that hang on nothing, [batch, count, dim]."""

    inserted_by = "synqt"

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.count, self.dim = count, dim
        self.query = nn.Parameter(torch.zeros(count, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """For as many images as x has."""
        return self.query.to(x.dtype).expand(x.shape[0], -1, -1)


class KnowledgeCopy(nn.Module):
    """A block for queries alone, whose attention is given the tokens' keys and values."""

    inserted_by = "synqt"

    def __init__(self, dim: int, heads: int, width: int, units: int, eps: float) -> None:
        super().__init__()
        self.dim, self.heads, self.width, self.units, self.eps = dim, heads, width, units, eps
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.q = nn.Linear(dim, heads * width)
        self.proj = nn.Linear(heads * width, dim)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.fc1 = nn.Linear(dim, units)
        self.fc2 = nn.Linear(units, dim)

    def forward(
        self, p: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What queries become, and what the attention and the feed-forward part have added."""
        q = self.q(self.norm1(p)).unflatten(-1, (self.heads, self.width)).transpose(1, 2)
        attended = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        r = p + attended
        fed = self.fc2(F.gelu(self.fc1(self.norm2(r))))
        return r + fed, attended, fed


class QueryReadout(nn.Module):
    """What the head reads of `taps` features, those that the last queries became among them.

    The taps are what queries have become, L blocks of them, then what attentions have added, then
    what feed-forward parts have, each [batch, queries, dim].
    """

    inserted_by = "synqt"

    def __init__(
        self, dim: int, hidden: int, taps: int, dropout: float = 0.0, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.dim, self.hidden, self.taps = dim, hidden, taps
        self.dropout, self.drop_path = dropout, drop_path
        self.feature_norm = nn.LayerNorm(dim)
        self.adapter = SynthesisAdapter(dim, hidden, dropout)
        self.weight_fc = nn.Linear(dim, taps)
        self.final_norm = nn.LayerNorm(dim)

    def forward(self, *taps: torch.Tensor) -> torch.Tensor:
        """One vector for each image, [batch, dim]."""
        g = self.features(*taps)
        others = g[:, 1:] * self.weights(g)[..., None]
        if self.training and self.drop_path > 0:
            keep = 1 - self.drop_path
            others = others * (torch.rand_like(others[:, :1, :1]) < keep).to(others.dtype) / keep
        made: torch.Tensor = self.final_norm(torch.cat([g[:, :1], others], 1).mean(1))
        return made

    def features(self, *taps: torch.Tensor) -> torch.Tensor:
        """g [batch, 1 + taps, dim], the first of what the last queries became."""
        found = torch.stack([tap.mean(1) for tap in taps], 1)
        last = self.taps // 3 - 1
        found = torch.cat([found[:, last : last + 1], found], 1)
        g: torch.Tensor = found + self.adapter(self.feature_norm(found))
        return g

    def weights(self, g: torch.Tensor) -> torch.Tensor:
        """Of all features but the first, [batch, taps]."""
        w = F.dropout(F.gelu(self.weight_fc(g[:, 0])), self.dropout, self.training)
        return torch.tanh(w)
