"""The interface of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch


class Task(ABC):
    """A loss, and figures to judge a model by.

    Attributes:
        metric: the figure that runs are judged by, a fraction, as `results` calls it.
        smooths: whether the loss knows label smoothing.
        classes: how many classes the model tells apart.
    """

    metric: ClassVar[str]
    smooths: ClassVar[bool] = False

    def __init__(self, classes: int) -> None:
        self.classes = classes

    @abstractmethod
    def loss(
        self, output: Any, labels: torch.Tensor, *, smoothing: float = 0.0, seed: int | None = None
    ) -> torch.Tensor:
        """The scalar loss of a batch, averaged.

        Args:
            output: what the model returned.
            labels: (B,), or (B, H, W) for maps, where 255 is ignored.
            smoothing: of the labels.
            seed: of what the loss draws, if it does; by default it draws from the global
                generators, as a part of a step that all processes take together.
        """

    @abstractmethod
    def tally(self, output: Any, labels: torch.Tensor) -> torch.Tensor:
        """What an evaluation adds up over batches and processes, float64; -1 labels are padding."""

    @abstractmethod
    def results(self, sums: torch.Tensor) -> dict[str, float]:
        """`loss`, `images` and the figures of the task, from the sums of `tally`."""
