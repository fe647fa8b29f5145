"""Policies of augmentation by timm's names."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..text import shown

if TYPE_CHECKING:
    from PIL.Image import Image


@functools.cache
def check_policy(policy: str) -> None:
    """Raises DataError: VR755 for a policy that timm does not know."""
    import timm.data

    library: Any = timm.data
    try:
        library.create_transform(32, is_training=True, auto_augment=policy)
    except Exception as error:  # timm asserts, or fails on what it parses
        raise DataError(
            "VR755",
            f"timm knows no policy {shown(policy)}",
            notes=["valid: rand-m9-mstd0.5-inc1 and the like, original, v0, 3a, augmix-m3-w3"],
        ) from error


def mend(transforms: Any) -> None:
    """Has policies posterise to no bit as they did: Pillow refuses that since its version 12."""
    for transform in transforms:
        for operation in _operations(transform):
            if operation.name.startswith("Posterize"):
                operation.aug_fn = posterised


def posterised(image: Image, bits: int, **_: Any) -> Image:
    """An image with so many bits of each channel; black without any."""
    from PIL import ImageOps

    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits else image.point(lambda value: 0)


def _operations(transform: Any) -> Iterator[Any]:
    """The operations that a policy draws from; none of another transform."""
    found = [*getattr(transform, "ops", ())]
    for group in getattr(transform, "policy", ()):
        found += group
    return (each for each in found if hasattr(each, "aug_fn"))
