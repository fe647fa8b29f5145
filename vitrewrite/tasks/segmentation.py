"""What all segmentation has in common: pixels are counted by class."""

from __future__ import annotations

from abc import abstractmethod
from importlib.util import find_spec
from typing import Any

import torch

from ..errors import TuneError
from .overlap import counts, figures
from .task import Task


class Segmentation(Task):
    """Mean intersection over union, over all images together.

    Images are looked at one by one, so that what an evaluation yields does not depend on how they
    came together in batches, and scores in full size are held of one image only.

    Raises:
        TuneError: VR857 without torchmetrics.
    """

    metric = "mIoU"

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        if find_spec("torchmetrics") is None:
            raise TuneError(
                "VR857",
                "the figures of a segmentation need torchmetrics",
                suggestion="pip install 'vitrewrite[tune]'",
            )

    @abstractmethod
    def part(self, output: Any, index: int) -> Any:
        """The output for one image of a batch, as a batch of one."""

    @abstractmethod
    def scores(self, output: Any, size: tuple[int, int]) -> torch.Tensor:
        """Scores of classes (classes, H, W) in the first image of a batch, resized."""

    def tally(self, output: Any, labels: torch.Tensor) -> torch.Tensor:
        """The sums of losses and of images, then pixels by class and predicted class."""
        sums = torch.zeros(2 + self.classes**2, dtype=torch.float64, device=labels.device)
        for index, each in enumerate(labels):
            if bool((each < 0).all()):
                continue
            single = self.part(output, index)
            loss = self.loss(single, each[None], seed=0).double()
            best = self.scores(single, (each.shape[-2], each.shape[-1])).argmax(0)
            found = counts(best, each, self.classes).flatten()
            sums += torch.cat([torch.stack([loss, torch.ones_like(loss)]), found])
        return sums

    def results(self, sums: torch.Tensor) -> dict[str, float]:
        """`loss`, `mIoU`, `pixel_accuracy`, `images`."""
        loss, images = sums[:2].tolist()
        shares = figures(sums[2:].view(self.classes, self.classes))
        return {"loss": loss / images, **shares, "images": round(images)}
