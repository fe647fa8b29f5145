"""Counts of pixels by class, which mean IoU and pixel accuracy are made of."""

from __future__ import annotations

import torch

from ..data.maps import IGNORED


def valid(labels: torch.Tensor) -> torch.Tensor:
    """Which entries of label maps are a class: neither ignored nor padding."""
    return (labels >= 0) & (labels != IGNORED)


def counts(predicted: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Pixels by class, of those with a label: [3, classes], float64.

    Args:
        predicted: class indices, as many as labels.
        labels: class indices, 255 and -1 where there is no class.
        classes: how many there are.

    Returns:
        Pixels of the class in both, in the prediction, in the labels.
    """
    known = valid(labels)
    predicted, labels = predicted[known], labels[known]
    parts = (labels[predicted == labels], predicted, labels)
    return torch.stack([torch.bincount(part, minlength=classes) for part in parts]).double()


def figures(found: torch.Tensor) -> dict[str, float]:
    """`mIoU`, over the classes that are in labels or predictions, and `pixel_accuracy`.

    Args:
        found: sums of `counts`, [3, classes].
    """
    both, predicted, labels = found
    union = predicted + labels - both
    ious = both[union > 0] / union[union > 0]
    return {
        "mIoU": float(ious.mean()) if len(ious) else 0.0,
        "pixel_accuracy": float(both.sum() / labels.sum().clamp(min=1)),
    }
