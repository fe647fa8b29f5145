"""Transforms of an image together with its label map."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from .maps import IGNORED
from .preprocessing import Preprocessing

if TYPE_CHECKING:
    from PIL.Image import Image

_SCALES = (0.5, 2.0)
_COLOURS = 0.4  # brightness, contrast and saturation change by so much at most


@dataclass(frozen=True)
class JointTransform:
    """Brings image and map to one size, and normalises the image.

    Attributes:
        size: height and width.
        mean: of each channel.
        std: of each channel.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, wanted: Preprocessing) -> JointTransform:
        """As a model takes images."""
        mean, std = tuple(wanted.config["mean"]), tuple(wanted.config["std"])
        return cls((wanted.size[1], wanted.size[2]), mean, std)

    def image(self, image: Image) -> torch.Tensor:
        """The image alone (C, H, W)."""
        return self._normalised(_resized(image, self.size))

    def plain(self, image: Image, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Resized as a whole, (C, H, W) and (H, W)."""
        return self.image(image), _resized_map(labels, self.size)

    def random(self, image: Image, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A part, or the whole with a margin, at half to twice the size; flipped, recoloured."""
        scale = random.uniform(*_SCALES)
        size = round(self.size[0] * scale), round(self.size[1] * scale)
        pixels = self._normalised(_resized(_recoloured(image), size))
        labels = _resized_map(labels, size)
        for axis, (side, wanted) in enumerate(zip(size, self.size, strict=True)):
            start = random.randint(min(0, wanted - side), max(0, wanted - side))
            pixels = _window(pixels, axis + 1, start, wanted, 0)
            labels = _window(labels, axis, start, wanted, IGNORED)
        if random.random() < 0.5:
            pixels, labels = pixels.flip(-1), labels.flip(-1)
        return pixels.contiguous(), labels.contiguous()

    def _normalised(self, image: Image) -> torch.Tensor:
        pixels = torch.from_numpy(np.array(image, dtype=np.float32) / 255)
        pixels = pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.mean, self.std))
        return ((pixels - mean) / std).contiguous()


def _resized(image: Image, size: tuple[int, int]) -> Image:
    from PIL import Image as Pillow

    return image.resize((size[1], size[0]), Pillow.Resampling.BILINEAR)


def _resized_map(labels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(labels[None, None].double(), size, mode="nearest-exact")[0, 0].long()


def _recoloured(image: Image) -> Image:
    from PIL import ImageEnhance

    kinds: list[Any] = [ImageEnhance.Brightness, ImageEnhance.Contrast]
    if image.mode == "RGB":
        kinds.append(ImageEnhance.Color)
    random.shuffle(kinds)
    for kind in kinds:
        image = kind(image).enhance(random.uniform(1 - _COLOURS, 1 + _COLOURS))
    return image


def _window(values: torch.Tensor, axis: int, start: int, length: int, fill: int) -> torch.Tensor:
    """What a window of some length sees of one axis; `start` is where the values begin in it."""
    first = max(0, -start)
    seen = values.narrow(axis, first, min(length - max(0, start), values.shape[axis] - first))
    before = max(0, start)
    pads = [0, 0] * (values.dim() - 1 - axis)
    return F.pad(seen, [*pads, before, length - before - seen.shape[axis]], value=fill)
