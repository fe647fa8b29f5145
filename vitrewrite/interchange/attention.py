"""Attention in the only form that exporters to ONNX write: four axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

_AXES = 4


class FourAxes(TorchFunctionMode):
    """While it is entered, attention over fewer axes than four has leading ones of length 1.

    What it returns is contiguous: kernels return it otherwise than what they are decomposed into,
    of which views of it would then be made that it does not have.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """As torch does, but of `scaled_dot_product_attention` with two or three axes."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _attended(*args, **kwargs)
        return func(*args, **kwargs)


def _attended(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> torch.Tensor:
    """Attention whose operands have `batch * heads` as one axis, or none, as that of one image."""
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
