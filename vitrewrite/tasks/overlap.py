"""Pixels by class, which mean IoU and pixel accuracy are made of: torchmetrics counts them."""

from __future__ import annotations

import torch

from ..data.maps import IGNORED


def valid(labels: torch.Tensor) -> torch.Tensor:
    """Which entries of label maps are a class: neither ignored nor padding."""
    return (labels >= 0) & (labels != IGNORED)


def counts(predicted: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Pixels by the class that they have and the class that is predicted: [classes, classes].

    Args:
        predicted: class indices, as many as labels.
        labels: class indices, 255 and -1 where there is no class.
        classes: how many there are.
    """
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    known = valid(labels)
    pair = predicted[known], labels[known]
    return multiclass_confusion_matrix(*pair, classes, validate_args=False)


def figures(found: torch.Tensor) -> dict[str, float]:
    """`mIoU`, over the classes that are in labels or predictions, and `pixel_accuracy`.

    Args:
        found: sums of `counts`, [classes, classes].
    """
    from torchmetrics.classification import MulticlassJaccardIndex

    if not found.any():
        return {"mIoU": 0.0, "pixel_accuracy": 0.0}
    metric = MulticlassJaccardIndex(len(found), validate_args=False)
    metric.update(found.new_empty(0).long(), found.new_empty(0).long())  # it warns without one
    metric.merge_state({"confmat": found.long().to(metric.device)})
    return {"mIoU": float(metric.compute()), "pixel_accuracy": float(found.trace() / found.sum())}
