"""Transforms of an image together with its label map: torchvision's, which move both alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from .maps import IGNORED
from .preprocessing import Preprocessing

if TYPE_CHECKING:
    from PIL.Image import Image

_SCALES = (0.5, 2.0)
_COLOURS = 0.4  # brightness, contrast and saturation change by so much at most


class LabelMap(tv_tensors.Mask):  # type: ignore[misc]
    """Class indices (H, W), resized by the pixel at the centre: a mask would move by half a one."""


@functional.register_kernel(functional.resize, LabelMap)  # type: ignore[untyped-decorator]
def _resized(labels: LabelMap, size: list[int], **_: Any) -> LabelMap:
    values, nearest = labels.as_subclass(torch.Tensor)[None], InterpolationMode.NEAREST_EXACT
    return LabelMap(functional.resize_image(values, size, interpolation=nearest)[0])


class JointTransform:
    """Brings image and map to one size, and normalises the image.

    Args:
        size: height and width.
        mean: of each channel.
        std: of each channel.
    """

    def __init__(
        self, size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        grey = {tv_tensors.Image: [255 * value for value in mean], LabelMap: IGNORED}
        dtypes = {tv_tensors.Image: torch.float32, LabelMap: torch.int64}
        finish = [v2.ToDtype(dtypes, scale=True), v2.Normalize(mean, std), v2.ToPureTensor()]
        self._plain = v2.Compose([v2.Resize(size), *finish])
        self._random = v2.Compose([
            v2.ColorJitter(_COLOURS, _COLOURS, _COLOURS),
            v2.ScaleJitter(size[::-1], _SCALES),  # it takes the width first
            v2.RandomCrop(size, pad_if_needed=True, fill=grey),
            v2.RandomHorizontalFlip(),
            *finish,
        ])  # fmt: skip

    @classmethod
    def of(cls, wanted: Preprocessing) -> JointTransform:
        """As a model takes images."""
        return cls(wanted.size[1:], tuple(wanted.config["mean"]), tuple(wanted.config["std"]))

    def image(self, image: Image) -> torch.Tensor:
        """The image alone (C, H, W)."""
        pixels: torch.Tensor = self._plain(functional.to_image(image))
        return pixels

    def plain(self, image: Image, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Resized as a whole, (C, H, W) and (H, W)."""
        both: tuple[torch.Tensor, ...] = self._plain(functional.to_image(image), LabelMap(labels))
        return both[0], both[1]

    def random(self, image: Image, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A part, or the whole with a margin, at half to twice the size; flipped, recoloured."""
        both: tuple[torch.Tensor, ...] = self._random(functional.to_image(image), LabelMap(labels))
        return both[0], both[1]
