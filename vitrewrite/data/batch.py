"""What is asked for, and what comes back."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Key(NamedTuple):
    """Which image to load; a seed draws its augmentation, `real` is false for padding."""

    place: int
    seed: int | None = None
    real: bool = True


class Batch(NamedTuple):
    """Images (B, C, H, W) with labels (B,), or (B, H, W) for maps; labels of padding are -1."""

    images: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return Batch(*(t.to(device, non_blocking=True) for t in self))
