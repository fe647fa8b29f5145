"""Attention in the only form that exporters to ONNX write: four axes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

_AXES = 4


def attended(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> torch.Tensor:
    """`scaled_dot_product_attention`; with two or three axes it has leading ones of length 1.

    Such operands have `batch * heads` as one axis, or none. What it returns is contiguous: kernels
    return it otherwise than what they are decomposed into, of which views of it would then be made
    that it does not have.
    """
    axes = max(query.dim(), key.dim(), value.dim())
    if axes >= _AXES:
        found = F.scaled_dot_product_attention(query, key, value, attn_mask, *args, **kwargs)
        return found.contiguous()
    wide = _widened(query), _widened(key), _widened(value)
    # A mask is broadcast against the others, so that its own axes may stay as few as they are.
    mask = attn_mask if attn_mask is None or attn_mask.dim() < axes else _widened(attn_mask)
    found = F.scaled_dot_product_attention(*wide, mask, *args, **kwargs)
    for _ in range(_AXES - axes):
        found = found.squeeze(0)
    return found.contiguous()


def _widened(x: torch.Tensor) -> torch.Tensor:
    return x[(None,) * (_AXES - x.dim())]
