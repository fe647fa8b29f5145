"""Text for constant tensors: buffers that no checkpoint holds."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy
import torch

from .literals import constant

PACKED = "unpack("


def table(tensor: torch.Tensor) -> str:
    """An expression whose value is exactly `tensor`."""
    shape = ", ".join(map(str, tensor.shape)) or "()"
    dtype = "" if tensor.dtype == torch.float32 else f", dtype={tensor.dtype}"
    if tensor.device.type == "meta":
        return f"torch.zeros({shape}{dtype})"
    if _is_constant(tensor):
        value = tensor.flatten()[0].item()
        if value in (0, 1) and not isinstance(value, complex) and constant(value) != "-0.0":
            return f"torch.{'ones' if value else 'zeros'}({shape}{dtype})"
        return f"torch.full({constant(tuple(tensor.shape))}, {constant(value)}{dtype})"
    if is_short(tensor):
        dtype = "" if tensor.dtype in (torch.float32, torch.int64) else f", dtype={tensor.dtype}"
        return f"torch.tensor({constant(_shortest(tensor))}{dtype})"
    raw = tensor.contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes()
    packed = base64.b85encode(zlib.compress(raw, 9)).decode()
    return f'{PACKED}"{packed}", {tensor.dtype}, {constant(tuple(tensor.shape))})'


def _shortest(tensor: torch.Tensor) -> Any:
    """Its numbers with as few digits as float32 takes, where that is what it holds."""
    exact = tensor.tolist()
    if tensor.dtype != torch.float32 or not tensor.isfinite().all():
        return exact
    digits = [float(str(n)) for n in tensor.detach().cpu().numpy().flat]
    short = numpy.array(digits).reshape(tensor.shape).tolist()
    again = torch.tensor(short, dtype=torch.float32)
    same = torch.equal(again.view(torch.int32), tensor.detach().cpu().view(torch.int32))
    return short if same else exact


def is_short(tensor: torch.Tensor) -> bool:
    """Whether the value itself is the shortest way to write the tensor."""
    return tensor.device.type != "meta" and (tensor.numel() <= 8 or _is_constant(tensor))


def _is_constant(tensor: torch.Tensor) -> bool:
    if tensor.numel() == 0:
        return False
    raw = tensor.flatten().contiguous()
    return bool((raw.view(torch.uint8).view(len(raw), -1) == raw[:1].view(torch.uint8)).all())


def unpack(packed: str, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """The tensor of a packed table."""
    raw = zlib.decompress(base64.b85decode(packed))
    return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape)
