"""Label maps for a model that returns scores of classes for each pixel, or each few of them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ..data.maps import IGNORED
from .classification import logits
from .overlap import valid
from .segmentation import Segmentation


class Dense(Segmentation):
    """Cross-entropy of the pixels that have a class; scores (B, classes, h, w) are upsampled."""

    smooths = True

    def loss(
        self, output: Any, labels: torch.Tensor, *, smoothing: float = 0.0, seed: int | None = None
    ) -> torch.Tensor:
        """The mean over pixels."""
        scores = _resized(logits(output).float(), (labels.shape[-2], labels.shape[-1]))
        known = valid(labels)
        total = F.cross_entropy(
            scores,
            labels.masked_fill(~known, IGNORED),
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=smoothing,
        )
        return total / known.sum().clamp(min=1)

    def part(self, output: Any, index: int) -> Any:
        """The scores of one image."""
        return logits(output)[index : index + 1]

    def scores(self, output: Any, size: tuple[int, int]) -> torch.Tensor:
        """The upsampled scores."""
        return _resized(logits(output).float(), size)[0]


def _resized(scores: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(scores, size, mode="bilinear", align_corners=False)
