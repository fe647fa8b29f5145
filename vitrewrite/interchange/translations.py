"""Operators in ONNX that torch's exporter has none for, or not with symbols."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What writes each of these operators, as `torch.onnx.export` wants it."""
    return {
        torch.ops.aten.sort.stable: _sorted,
        torch.ops.aten.remainder.Scalar: _remainder,
    }


def _sorted(self: Any, dim: int = -1, descending: bool = False, stable: bool = True) -> Any:
    """`TopK` of everything: it keeps the order of what is equal, with either sign."""
    from onnxscript import ir

    op = _operators()
    # TopK knows no truth values and none of the smallest numbers.
    small = ir.DataType.BOOL, ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.INT16
    wide = op.Cast(self, to=ir.DataType.INT32) if self.dtype in small else self
    axis = dim % len(self.shape)
    count = op.Shape(self, start=axis, end=axis + 1)
    values, indices = op.TopK(wide, count, axis=dim, largest=int(descending), sorted=1)
    return (op.CastLike(values, self) if self.dtype in small else values), indices


def _remainder(self: Any, other: Any) -> Any:
    """The remainder with the sign of the divisor, which may be a symbol."""
    op = _operators()
    other = op.CastLike(other, self)
    if self.dtype.is_integer():
        return op.Mod(self, other)
    return op.Sub(self, op.Mul(op.Floor(op.Div(self, other)), other))


def _operators() -> Any:
    """Of the opset that is written, whose types say less than these functions know."""
    from onnxscript import opset18

    return opset18
