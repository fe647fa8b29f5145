"""Label maps: a picture whose pixels are indices of classes, read to the last bit.

A map is a PNG of one channel (grey of 1 to 16 bits, or a palette, whose colours do not matter). It
belongs to the image as one sees it: where EXIF turns the image, the map is already turned, or has
the same orientation. 255 is no class, so there are at most 255 classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError
from ..text import listing, shown
from .pictures import Head, UnreadableError, opened, upright

if TYPE_CHECKING:
    from PIL.Image import Image

    Map = np.ndarray[Any, np.dtype[np.int64]]

IGNORED = 255
"""The index in a label map of what is no class."""

_VALID = "valid: a PNG of one channel, as large as the image, whose pixels are classes"
_SCALED = {"L;2": 85, "L;4": 17}  # Pillow makes grey of 2 and 4 bits as bright as that of 8


def unusable(path: Path, reason: object) -> DataError:
    """VR747, for a label map."""
    message = f"cannot use the label map {shown(path, 200)}: {reason}"
    return DataError("VR747", message, notes=[_VALID])


def read_map(path: Path, size: tuple[int, int]) -> Map:
    """The values of a map, upright.

    Args:
        path: the file.
        size: height and width of the image, upright.

    Raises:
        DataError: VR747 if it cannot be used.
    """
    try:
        with opened(path) as (image, head):
            _check_head(image, head, size)
            image.load()
            values = np.asarray(upright(image, head)).astype(np.int64)
            return values // _SCALED.get(head.raw, 1)
    except UnreadableError as error:
        raise unusable(path, error) from error


def check_map(path: Path, size: tuple[int, int]) -> DataError | None:
    """What is wrong with a map, as far as the head of the file tells."""
    try:
        with opened(path) as (image, head):
            _check_head(image, head, size)
            return None
    except UnreadableError as error:
        return unusable(path, error)


def _check_head(image: Image, head: Head, size: tuple[int, int]) -> None:
    if image.format != "PNG":
        raise UnreadableError(f"it is no PNG, but {image.format}")
    if getattr(image, "n_frames", 1) > 1:
        raise UnreadableError(f"it has {getattr(image, 'n_frames', 1)} frames")
    channels = len(image.getbands())
    if channels != 1:
        raise UnreadableError(f"it has {channels} channels, and class indices are one")
    if head.size != size:
        height, width = head.size
        raise UnreadableError(f"it is {width}x{height}, and the image {size[1]}x{size[0]}")


def check_values(values: Map, where: str, outputs: int | None, named: int, first: int) -> None:
    """Whether each value of a map stands for a class, or for none.

    Args:
        values: as they lie in the file.
        where: which map of which image it is.
        outputs: of the model's head, if that is known.
        named: how many classes `classes.txt` names; 0 if there is none.
        first: the value of the first class.

    Raises:
        DataError: VR743 if not.
    """
    counts = [count for count in (named or None, outputs) if count is not None]
    stop = min([IGNORED, *(count + first for count in counts)])
    odd = np.unique(values[(values >= stop) & (values != IGNORED)])
    if not len(odd):
        return
    one = len(odd) == 1
    what = "the head" if outputs is not None and stop == outputs + first else "the classes"
    raise DataError(
        "VR743",
        f"the label{'s' * (not one)} {listing(map(str, odd), 5)} of {where} "
        f"{'is' if one else 'are'} outside {what}",
        notes=[f"valid: {first}..{stop - 1}, and {'0 or ' * first}255 for none"],
    )
