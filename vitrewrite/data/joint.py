"""Transforms of an image together with its label map: torchvision's, which move both alike."""

from __future__ import annotations

from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from .augmentation import Augmentation
from .maps import IGNORED

_TRIES = 10  # to find a crop that is not all of one class, as in mmseg


class LabelMap(tv_tensors.Mask):  # type: ignore[misc]
    """Class indices (H, W), resized by the pixel at the centre: a mask would move by half a one."""


@functional.register_kernel(functional.resize, LabelMap)  # type: ignore[untyped-decorator]
def _resized(labels: LabelMap, size: list[int], **_: Any) -> LabelMap:
    values, nearest = labels.as_subclass(torch.Tensor)[None], InterpolationMode.NEAREST_EXACT
    return LabelMap(functional.resize_image(values, size, interpolation=nearest)[0])


class MixedCrop(v2.RandomCrop):  # type: ignore[misc]
    """A random crop in which no class has more than a share, if one is found in ten tries."""

    def __init__(self, size: tuple[int, int], share: float, fill: Any) -> None:
        super().__init__(size, pad_if_needed=True, fill=fill)
        self.share = share

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Where to crop; by the generator alone."""
        labels = next(each for each in flat_inputs if isinstance(each, LabelMap))
        for _ in range(_TRIES):
            params: dict[str, Any] = super().make_params(flat_inputs)
            if _largest_share(self.transform(labels, params)) <= self.share:
                break
        return params


def _largest_share(labels: torch.Tensor) -> float:
    """That of the most frequent class in the pixels that have one."""
    counts = labels[labels != IGNORED].long().bincount()
    return float(counts.max() / counts.sum()) if len(counts) else 1.0


class JointTransform:
    """Brings image and map to one size; both have 8 bits.

    Args:
        size: height and width.
        mean: of each channel, from 0 to 1: what is beside an image.
        chosen: what is random.
    """

    def __init__(
        self, size: tuple[int, int], mean: tuple[float, ...], chosen: Augmentation
    ) -> None:
        fill = {tv_tensors.Image: [round(255 * value) for value in mean], LabelMap: IGNORED}
        self._plain = v2.Resize(size)
        steps: list[Any] = [v2.ColorJitter(*[chosen.colour] * 3)] if chosen.colour else []
        steps += [v2.RandomPhotometricDistort()] if chosen.distort else []
        if chosen.zoom is None:
            steps.append(self._plain)
        else:
            # ScaleJitter takes the width first.
            steps.append(v2.ScaleJitter(size[::-1], (1 / chosen.zoom, chosen.zoom)))
            steps.append(MixedCrop(size, chosen.one_class, fill))
        self._random = v2.Compose([*steps, v2.RandomHorizontalFlip(chosen.flip)])

    def plain(
        self, pixels: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Resized as a whole, (C, H, W) and (H, W)."""
        return _pure(self._plain(tv_tensors.Image(pixels), LabelMap(labels)))

    def random(
        self, pixels: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A part, or the whole with a margin."""
        return _pure(self._random(tv_tensors.Image(pixels), LabelMap(labels)))


def _pure(both: Any) -> tuple[torch.Tensor, torch.Tensor]:
    pixels, labels = (each.as_subclass(torch.Tensor).contiguous() for each in both)
    return pixels, labels
