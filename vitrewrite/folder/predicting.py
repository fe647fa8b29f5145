"""What the model of a folder sees in images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import FileError
from ..report.prediction import ImagePrediction, areas, best
from ..tasks.classification import logits
from ..tasks.queries import CLASSES, MASKS, semantic
from ..text import shown
from ..tracing import tree
from .usage import CLASSIFICATION, OTHER, QUERIES, Usage

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Predictor:
    """A model with what is known of its use, and the device that it is on."""

    model: nn.Module
    usage: Usage
    device: str = "cpu"

    def __post_init__(self) -> None:
        refuse_other(self.usage)

    def predict(self, name: str, image: Image, top: int) -> ImagePrediction:
        """What the model sees in an image.

        Args:
            name: what to call it.
            image: a picture.
            top: so many classes are told, of a label.
        """
        eight = self.prepared(image)
        pixels = self.usage.preprocessing.normalised(eight).to(self.usage.torch_dtype)
        with torch.no_grad():
            output = tree.map_leaves(_on_cpu, self.model(pixels[None].to(self.device)))
        known: dict[str, Any] = {
            "image": name, "pixels": (eight / 255).expand(3, -1, -1),
            "classes": self.usage.outputs, "names": self.usage.classes,
        }  # fmt: skip
        if self.usage.task == CLASSIFICATION:
            return ImagePrediction(shares=best(logits(output)[0], top), **known)
        labels = self._labels(output, (int(eight.shape[-2]), int(eight.shape[-1])))
        return ImagePrediction(shares=areas(labels), labels=labels, **known)

    def prepared(self, image: Image) -> torch.Tensor:
        """An image as 8 bits (C, H, W), resized and cropped as the model wants it.

        To segment it all of it is taken; its ratio is kept where a model takes several sizes, as
        far as sides have to be multiples.
        """
        wanted, usage = self.usage.preprocessing, self.usage
        image = image.convert(wanted.mode)
        if usage.task == CLASSIFICATION:
            made: torch.Tensor = wanted.plain(whole=False)(image)
            return made
        from torchvision.transforms import v2

        size = [usage.size[1], usage.size[2]]
        if not usage.fixed and max(usage.multiple) > 1:
            scale = math.sqrt(size[0] * size[1] / (image.height * image.width))
            sides = zip((image.height, image.width), usage.multiple, strict=True)
            size = [max(1, round(side * scale / step)) * step for side, step in sides]
        resized: torch.Tensor = v2.Compose([v2.Resize(size), v2.PILToTensor()])(image)
        return resized

    def _labels(self, output: Any, size: tuple[int, int]) -> torch.Tensor:
        """The best class of each pixel."""
        if self.usage.task == QUERIES:
            return semantic(output[CLASSES][0], output[MASKS][0], size).argmax(0)
        scores = F.interpolate(logits(output).float(), size, mode="bilinear", align_corners=False)
        return scores[0].argmax(0)


def _on_cpu(value: torch.Tensor) -> torch.Tensor:
    return value.cpu()


def refuse_other(usage: Usage) -> None:
    """Raises VR888 for what returns no classes."""
    if usage.task == OTHER or not usage.outputs:
        raise FileError(
            "VR888",
            f"the model returns no scores of classes: its task is {shown(usage.task)}",
            notes=["what returns something else, such as stitched models, is called in Python"],
            suggestion="see README.md in the folder, or apply a model that has a head of classes",
        )
