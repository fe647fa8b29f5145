"""Decoded images that are kept in memory, up to a limit: worker processes share it by fork.

What is kept hangs on the image alone, never on what is drawn for it, so results are the same with
and without. The memory is mapped without a file and costs only what is written.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch

_SHARE = 4  # at most one part of so many of the machine's memory
_COLUMNS = 5  # of the table: place + 1, channels, height, width, label


class ImageMemory:
    """Images of 8 bits with their labels.

    Args:
        count: of images.
        limit: of bytes.

    Attributes:
        closed: whether an image did not fit any more.
    """

    def __init__(self, count: int, limit: int) -> None:
        self.count, self.limit, self.closed = count, min(limit, _physical() // _SHARE), False
        self.table: torch.Tensor | None = None
        if not self.limit:
            return
        with suppress(OSError, ValueError, OverflowError):  # a system that gives none
            self.lock = multiprocessing.Lock()
            self.bytes = _mapped(self.limit)
            self.table = _mapped(8 * _COLUMNS * (count + 1)).view(torch.int64).view(-1, _COLUMNS)

    def __reduce__(self) -> tuple[Any, ...]:
        """A process that is started afresh has a memory of its own, which keeps nothing."""
        return ImageMemory, (self.count, 0)

    def get(self, index: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """An image (C, H, W), not to be written to, and its label."""
        if self.table is None:
            return None
        with self.lock:
            row = self.table[index].clone()
        start, *shape = row[:-1].tolist()
        if not start:
            return None
        size = shape[0] * shape[1] * shape[2]
        return self.bytes[start - 1 : start - 1 + size].view(shape), row[-1]

    def put(self, index: int, image: torch.Tensor, label: torch.Tensor) -> None:
        """Keeps an image, if it fits."""
        if self.closed or self.table is None:
            return
        with self.lock:
            used = self.table[self.count]  # the row behind the images: bytes, and images kept
            start, size = int(used[0]), image.numel()
            if start + size > self.limit:
                self.closed = True
            elif not self.table[index, 0]:
                self.bytes[start : start + size] = image.flatten()
                self.table[index] = torch.tensor([start + 1, *image.shape, int(label)])
                used += torch.tensor([size, 1, 0, 0, 0])

    @property
    def share(self) -> float:
        """How many of the images are there, from 0 to 1."""
        return 0.0 if self.table is None else int(self.table[self.count, 1]) / max(1, self.count)

    def gather(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Images (B, C, H, W) of one size with their labels (B,), if all of them are there."""
        if self.table is None:
            return None
        with self.lock:
            rows = self.table[torch.tensor(indices)]
        if not rows[:, 0].all():
            return None
        shape = rows[0, 1:4].tolist()
        size = shape[0] * shape[1] * shape[2]
        slots = self.bytes[: len(self.bytes) // size * size].view(-1, size)
        return slots[(rows[:, 0] - 1) // size].view(-1, *shape), rows[:, 4].clone()


def _mapped(size: int) -> torch.Tensor:
    return torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)


def _physical() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 1 << 32
