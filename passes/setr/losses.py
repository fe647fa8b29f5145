"""Losses of heads that are there for training alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vitrewrite.authoring import Procedure, Run


class AuxiliaryLosses(Procedure):
    """A share of the task's loss for each further output of the model.

    Args:
        weight: the share.
    """

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def terms(self, run: Run, batch: Any, output: Any) -> Mapping[str, torch.Tensor]:
        """The losses by head."""
        _, *others = output
        smoothing = run.settings.label_smoothing
        return {
            f"aux.{i}": self.weight * run.task.loss(each, batch.labels, smoothing=smoothing)
            for i, each in enumerate(others)
        }
