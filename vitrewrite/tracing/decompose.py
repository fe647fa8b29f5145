"""Functions of torch that are whole programs, in terms of products, views and softmax.

`F.multi_head_attention_forward` hides its projections, its scores and its mask in one call. Here
are the same operations in the same order, so results are equal to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F


def multi_head_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, embed_dim_to_check: int,
    num_heads: int, in_proj_weight: torch.Tensor | None, in_proj_bias: torch.Tensor | None,
    bias_k: torch.Tensor | None, bias_v: torch.Tensor | None, add_zero_attn: bool,
    dropout_p: float, out_proj_weight: torch.Tensor, out_proj_bias: torch.Tensor | None,
    training: bool = True, key_padding_mask: torch.Tensor | None = None, need_weights: bool = True,
    attn_mask: torch.Tensor | None = None, use_separate_proj_weight: bool = False,
    q_proj_weight: torch.Tensor | None = None, k_proj_weight: torch.Tensor | None = None,
    v_proj_weight: torch.Tensor | None = None, static_k: torch.Tensor | None = None,
    static_v: torch.Tensor | None = None, average_attn_weights: bool = True,
    is_causal: bool = False,
) -> Any:  # fmt: skip
    """What `F.multi_head_attention_forward` computes; see there for the arguments.

    Args:
        query: [L, B, C].
        key: [S, B, C].
        value: [S, B, C].

    Returns:
        The output [L, B, C], and the attention [B, L, S] or [B, H, L, S] if it is needed; or
        `NotImplemented` for rare variants.
    """
    rare = (bias_k, bias_v, static_k, static_v)
    if query.dim() != 3 or add_zero_attn or is_causal or any(r is not None for r in rare):
        return NotImplemented
    tgt_len, bsz, _ = query.shape
    src_len = key.shape[0]
    head_dim = embed_dim_to_check // num_heads
    if use_separate_proj_weight:
        biases = in_proj_bias.chunk(3) if in_proj_bias is not None else (None, None, None)
        weights = (q_proj_weight, k_proj_weight, v_proj_weight)
        inputs = (query, key, value)
        q, k, v = (F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True))  # type: ignore[arg-type]
    else:
        assert in_proj_weight is not None
        q, k, v = _packed_projection(query, key, value, in_proj_weight, in_proj_bias)
    attn_mask = _additive(attn_mask, query.dtype)
    if attn_mask is not None and attn_mask.dim() == 2:
        attn_mask = attn_mask.unsqueeze(0)
    q = q.view(tgt_len, bsz * num_heads, head_dim).transpose(0, 1)
    k = k.view(src_len, bsz * num_heads, head_dim).transpose(0, 1)
    v = v.view(src_len, bsz * num_heads, head_dim).transpose(0, 1)
    padding = _additive(key_padding_mask, query.dtype)
    if padding is not None:
        padding = padding.view(bsz, 1, 1, src_len).expand(-1, num_heads, -1, -1)
        padding = padding.reshape(bsz * num_heads, 1, src_len)
        attn_mask = padding if attn_mask is None else attn_mask + padding
    drop = (dropout_p, training)
    heads = (bsz, num_heads, tgt_len, src_len, head_dim)
    attend = _with_weights if need_weights else _fused
    attn_output, weights_ = attend(q, k, v, attn_mask, drop, heads)
    attn_output = F.linear(attn_output, out_proj_weight, out_proj_bias)
    attn_output = attn_output.view(tgt_len, bsz, attn_output.size(1))
    if weights_ is not None and average_attn_weights:
        weights_ = weights_.mean(dim=1)
    return attn_output, weights_


def _packed_projection(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None
) -> tuple[torch.Tensor, ...]:
    E = q.size(-1)  # noqa: N806
    if k is v:
        parts = 3 if q is k else 2
        if q is k:
            proj = F.linear(q, w, b)
        else:
            w_q, w_kv = torch.split(w, [E, E * 2])
            b_q, b_kv = (None, None) if b is None else torch.split(b, [E, E * 2])
            q_proj = F.linear(q, w_q, b_q)
            proj = F.linear(k, w_kv, b_kv)
        proj = torch.unflatten(proj, -1, (parts, E)).unsqueeze(0).transpose(0, -2)
        proj = proj.squeeze(-2).contiguous()
        rest = tuple(proj[i] for i in range(parts))
        return rest if q is k else (q_proj, *rest)
    w_q, w_k, w_v = w.chunk(3)
    b_q, b_k, b_v = (None, None, None) if b is None else b.chunk(3)
    return F.linear(q, w_q, b_q), F.linear(k, w_k, b_k), F.linear(v, w_v, b_v)


def _additive(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """Minus infinity where a boolean mask says so."""
    if mask is None or mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))


def _with_weights(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    attn_mask: torch.Tensor | None,
    drop: tuple[float, bool],
    heads: tuple[int, ...],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    bsz, num_heads, tgt_len, src_len, head_dim = heads
    q_scaled = q * math.sqrt(1.0 / float(head_dim))
    if attn_mask is not None:
        attn_weights = torch.baddbmm(attn_mask, q_scaled, k.transpose(-2, -1))
    else:
        attn_weights = torch.bmm(q_scaled, k.transpose(-2, -1))
    attn_weights = F.softmax(attn_weights, dim=-1)
    attn_weights = F.dropout(attn_weights, drop[0], training=drop[1])
    attn_output = torch.bmm(attn_weights, v).transpose(0, 1)
    attn_output = attn_output.reshape(tgt_len * bsz, num_heads * head_dim)
    return attn_output, attn_weights.view(bsz, num_heads, tgt_len, src_len)


def _fused(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    attn_mask: torch.Tensor | None,
    drop: tuple[float, bool],
    heads: tuple[int, ...],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    bsz, num_heads, tgt_len, src_len, head_dim = heads
    if attn_mask is not None:
        if attn_mask.size(0) == 1:  # for all heads
            attn_mask = attn_mask.unsqueeze(0)
        else:
            attn_mask = attn_mask.view(bsz, num_heads, -1, src_len)
    q = q.view(bsz, num_heads, tgt_len, head_dim)
    k = k.view(bsz, num_heads, src_len, head_dim)
    v = v.view(bsz, num_heads, src_len, head_dim)
    attn_output = F.scaled_dot_product_attention(q, k, v, attn_mask, drop[0] if drop[1] else 0.0)
    attn_output = attn_output.permute(2, 0, 1, 3).contiguous()
    return attn_output.view(bsz * tgt_len, num_heads * head_dim), None


PROGRAMS: dict[Any, Callable[..., Any]] = {
    F.multi_head_attention_forward: multi_head_attention,
}
"""Functions that are recorded as what they do."""
