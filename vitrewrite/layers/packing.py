"""Quantised matrices as bits: codes of levels, with the mean and the deviation that they go by.

Numbers are taken row by row. The code of one is the index of its level, 0 the lowest; a byte holds
8 / bits of them, the first in its least significant bits, and the last byte is filled with zeros.
"""

from __future__ import annotations

import torch

from .quantised import Quantised

SCALE_BYTES = 8
"""Of the mean and the deviation of a matrix."""


def packed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes below 2^bits as bytes.

    Args:
        codes: integers of any shape.
        bits: 1, 2, 4 or 8 of each.
    """
    each = 8 // bits
    flat = codes.flatten().to(torch.int32)
    flat = torch.nn.functional.pad(flat, (0, -len(flat) % each)).view(-1, each)
    shifts = bits * torch.arange(each, device=flat.device, dtype=torch.int32)
    return (flat << shifts).sum(1).to(torch.uint8)


def unpacked(raw: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The first `count` codes in bytes."""
    shifts = bits * torch.arange(8 // bits, device=raw.device, dtype=torch.int32)
    codes = torch.bitwise_and(raw.to(torch.int32)[:, None] >> shifts, 2**bits - 1)
    return codes.flatten()[:count]


def size_of(matrix: Quantised) -> int:
    """Bytes of the codes of a matrix."""
    each = 8 // matrix.bits
    return -(-matrix.weight.numel() // each)


def fills_bytes(matrix: Quantised) -> bool:
    """Whether the codes of a matrix end where a byte does."""
    return matrix.bits * matrix.weight.numel() % 8 == 0


def is_flat(values: torch.Tensor) -> bool:
    """Whether all numbers are equal, so that they have no deviation; nobody knows on meta."""
    return not values.is_meta and bool(values.min() == values.max())


@torch.no_grad()
def pack(matrix: Quantised) -> tuple[torch.Tensor, torch.Tensor]:
    """The bytes of a matrix, and its mean and deviation in float32.

    Raises:
        ValueError: if no such bytes stand for it: all its numbers are equal, or it was read from
            bits and trained since.
    """
    weight = matrix.weight.float()
    hard = bool(matrix.scale[1] > 0)
    scale = matrix.scale.float() if hard else torch.stack([weight.mean(), weight.std()])
    if is_flat(weight):
        raise ValueError("all its numbers are equal")
    # A matrix on levels is divided by its deviation alone, or codes next to edges would move.
    n = (weight - scale[0]) / (scale[1] + (0.0 if hard else 1e-5))
    levels = matrix.levels.float()
    codes = torch.bucketize(n, (levels[1:] + levels[:-1]) / 2)
    if hard and not torch.equal(levels[codes] * scale[1] + scale[0], weight):
        raise ValueError("it was read from bits and trained since, and is on no levels now")
    return packed(codes, matrix.bits), scale


def dequantised(matrix: Quantised, raw: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The numbers that bytes stand for, shaped as the matrix."""
    codes = unpacked(raw, matrix.bits, matrix.weight.numel())
    levels = matrix.levels.float().to(raw.device)
    return (levels[codes] * scale[1] + scale[0]).view_as(matrix.weight)
