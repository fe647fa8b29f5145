"""Attention modules of torch, which in eval mode may take kernels that no program can call.

`nn.MultiheadAttention` and what is made of it compute in one fused call there, whose sums are in
another order. What is captured is what they compute elsewhere.
"""

from __future__ import annotations

from torch import nn

from . import walk

FUSED = 2e-6
"""How far these kernels may be off, as a share of the largest output, or of one."""
_FUSING = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)


def fused_attention(model: nn.Module) -> list[str]:
    """Classes of modules in a model that take such kernels."""
    found = {
        f"nn.{cls.__name__}" for m in walk.modules(model) for cls in _FUSING if isinstance(m, cls)
    }
    return sorted(found)
