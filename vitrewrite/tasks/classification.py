"""One label per image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from .task import Task


class Classification(Task):
    """Cross-entropy, and the share of images whose best class is the right one."""

    metric = "accuracy"
    smooths = True

    def loss(
        self, output: Any, labels: torch.Tensor, *, smoothing: float = 0.0, seed: int | None = None
    ) -> torch.Tensor:
        """The mean cross-entropy of the images.

        Labels may be shares of the classes (B, classes), as mixed images have; these are smooth.
        """
        smoothing = 0.0 if labels.is_floating_point() else smoothing
        return F.cross_entropy(logits(output), labels, label_smoothing=smoothing)

    def tally(self, output: Any, labels: torch.Tensor) -> torch.Tensor:
        """The sums of losses, of images, and of images that are right."""
        scores, real = logits(output).float(), labels >= 0
        scores, labels = scores[real], labels[real]
        loss = F.cross_entropy(scores, labels, reduction="sum")
        right = (scores.argmax(-1) == labels).sum()
        return torch.stack([loss.double(), real.sum().double(), right.double()])

    def results(self, sums: torch.Tensor) -> dict[str, float]:
        """`loss`, `accuracy`, `images`."""
        loss, images, right = sums.tolist()
        return {"loss": loss / images, "accuracy": right / images, "images": round(images)}


def logits(output: Any) -> torch.Tensor:
    """The class scores (B, classes) in an output: itself, or its first item."""
    while not hasattr(output, "dim"):
        output = next(iter(output.values() if isinstance(output, Mapping) else output))
    found: torch.Tensor = output
    return found
