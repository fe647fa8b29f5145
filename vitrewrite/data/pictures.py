"""Pictures from files: whole, upright, as grey or colour of 8 bits; or refused, with the reason.

| in the file | what is taken |
|---|---|
| 16-bit grey (PNG, PPM, TIFF) | scaled to 8 bits, not clipped |
| 32-bit numbers | refused: nothing says what is white |
| palette, CMYK, 1 bit, YCbCr | converted |
| transparency | left out: the colours as they are stored, as timm and torchvision do |
| several frames | the first one |
| EXIF orientation | applied |
| more pixels than `PIL.Image.MAX_IMAGE_PIXELS` | refused |
"""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError
from ..text import first_line, shown

if TYPE_CHECKING:
    from PIL.Image import Image

_ORIENTATION = 0x0112  # of EXIF
_PROGRAMS = {"EPS", "WMF"}  # formats that are drawn by running other programs


BEFORE = "repair it, or remove it"
"""What to do about a bad image before anything was done with it."""


class UnreadableError(Exception):
    """Why a file cannot be used as a picture."""


def refused(image: Path | str, reason: object, suggestion: str) -> DataError:
    """VR742, for a file, or for an image by its description."""
    name = shown(image, 200) if isinstance(image, Path) else image
    message = f"cannot read the image {name}: {reason}"
    return DataError("VR742", message, suggestion=suggestion)


def read_image(path: Path) -> Image:
    """The first frame of a file, upright, with 8 bits for each value.

    Raises:
        UnreadableError: if it cannot be read.
    """
    with opened(path) as (image, head):
        image.load()
        return upright(eight_bits(image, head.raw), head)


def check_header(path: Path) -> DataError | None:
    """What is wrong with an image, as far as the head of the file tells."""
    try:
        with opened(path):
            return None
    except UnreadableError as error:
        return refused(path, error, BEFORE)


@dataclass(frozen=True)
class Head:
    """What is known of a picture before its pixels are read.

    Attributes:
        raw: how values lie in the file, as Pillow calls it; empty if it does not say.
        size: height and width when it is upright.
        turn: how it has to be turned to be upright, as EXIF counts: 1 is not at all.
    """

    raw: str
    size: tuple[int, int]
    turn: int

    @classmethod
    def of(cls, image: Image) -> Head:
        """That of a picture that is open, and not loaded."""
        tiles: Any = getattr(image, "tile", None)
        raw = tiles[0][3] if tiles else ""
        raw = raw[0] if isinstance(raw, tuple) and raw else raw
        # Pillow turns TIFF itself.
        turn = 1 if image.format == "TIFF" else _orientation(image)
        size = (image.width, image.height) if turn >= 5 else (image.height, image.width)
        return cls(raw if isinstance(raw, str) else "", size, turn)


@contextmanager
def opened(path: Path) -> Iterator[tuple[Image, Head]]:
    """A picture of which only the head is read.

    Raises:
        UnreadableError: if it cannot be, or if what is done with it fails.
    """
    from PIL import Image, ImageFile, UnidentifiedImageError

    whole, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        _check_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged EXIF, of sizes, which we judge ourselves
            with Image.open(path, formats=_formats()) as image:
                _check_size(image)
                yield image, Head.of(image)
    except (UnreadableError, DataError):
        raise
    except UnidentifiedImageError as error:
        raise UnreadableError("it is in no format of images that can be read") from error
    except Image.DecompressionBombError as error:
        raise UnreadableError(_too_large()) from error
    except Exception as error:  # Pillow raises many kinds
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UnreadableError(reason) from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = whole


def _formats() -> list[str]:
    from PIL import Image

    Image.init()
    return [name for name in Image.ID if name not in _PROGRAMS]


def _check_file(path: Path) -> None:
    found = os.stat(path)  # noqa: PTH116 - a loop of links is an error here
    if not stat.S_ISREG(found.st_mode):
        raise UnreadableError("it is no regular file")
    if not found.st_size:
        raise UnreadableError("it is empty")


def _check_size(image: Image) -> None:
    from PIL import Image as Pillow

    pixels, limit = image.width * image.height, Pillow.MAX_IMAGE_PIXELS
    if not pixels:
        raise UnreadableError(f"it has {image.width}x{image.height} pixels")
    if limit is not None and pixels > limit:
        raise Pillow.DecompressionBombError


def _too_large() -> str:
    from PIL import Image

    return (
        f"it has more pixels than the {Image.MAX_IMAGE_PIXELS:,} of PIL.Image.MAX_IMAGE_PIXELS; "
        "such files can be made to fill the memory"
    )


# -- values ---------------------------------------------------------------------------------------


def converted(image: Image, mode: str) -> Image:
    """A picture in Pillow's mode `L` or `RGB`.

    Raises:
        UnreadableError: for values of 32 bits.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that transparency is left out
        return eight_bits(image).convert(mode)


def eight_bits(image: Image, raw: str = "") -> Image:
    """A picture whose values have 8 bits, scaled if they had more.

    Args:
        image: the picture.
        raw: how its values lay in the file.

    Raises:
        UnreadableError: for values of 32 bits.
    """
    from PIL import Image as Pillow

    white = _white(image, raw)
    if white is None:
        return image
    values = np.asarray(image).astype(np.float64) * (255 / white)
    return Pillow.fromarray(values.round().clip(0, 255).astype(np.uint8))


def _white(image: Image, raw: str) -> int | None:
    """The value of white, if values have more than 8 bits."""
    if image.mode.startswith("I;16"):
        return 0xFFF if raw.startswith("I;12") else 0xFFFF
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        return 0xFFFF
    if image.mode in ("I", "F"):
        raise UnreadableError("its values have 32 bits, and nothing says which of them is white")
    return None


# -- orientation ----------------------------------------------------------------------------------


def _orientation(image: Image) -> int:
    try:
        found = int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF, in which nobody finds an orientation
        return 1
    return found if 1 <= found <= 8 else 1


def upright(image: Image, head: Head) -> Image:
    """A picture turned as its head says."""
    from PIL.Image import Transpose

    turns = (
        None, Transpose.FLIP_LEFT_RIGHT, Transpose.ROTATE_180, Transpose.FLIP_TOP_BOTTOM,
        Transpose.TRANSPOSE, Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90,
    )  # fmt: skip
    turn = turns[head.turn - 1]
    return image.copy() if turn is None else image.transpose(turn)
