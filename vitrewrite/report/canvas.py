"""Pictures of pixels: panels with captions, colours of classes, heat maps."""

from __future__ import annotations

import colorsys
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from .picture import COLOURS

if TYPE_CHECKING:
    from PIL.Image import Image

INK, PALE, PAPER = (34, 34, 34), (110, 110, 110), (255, 255, 255)
# Anchors of matplotlib's magma, dark to light, which orders as grey does.
_HEAT = (
    (0, 0, 4), (28, 16, 68), (79, 18, 123), (129, 37, 129), (181, 54, 122), (229, 80, 100),
    (251, 135, 97), (254, 194, 135), (252, 253, 191),
)  # fmt: skip


class Canvas:
    """A white page that pictures and lines of text are put on."""

    def __init__(self, width: int, height: int) -> None:
        from PIL import Image, ImageDraw

        self.page = Image.new("RGB", (width, height), PAPER)
        self.draw: Any = ImageDraw.Draw(self.page)

    def text(
        self,
        at: tuple[int, int],
        text: str,
        *,
        size: int = 15,
        ink: tuple[int, ...] = INK,
        width: int | None = None,
    ) -> None:
        """A line, its top left corner at a place; cut to a width."""
        from PIL import ImageFont

        font = ImageFont.load_default(size)
        while width and len(text) > 1 and self.draw.textlength(text, font=font) > width:
            text = text.removesuffix("...")[:-1].rstrip() + "..."
        self.draw.text(at, text, fill=ink, font=font)

    def panel(self, at: tuple[int, int], pixels: torch.Tensor) -> None:
        """An image (3, H, W) of values from 0 to 1 in a thin frame."""
        picture = as_image(pixels)
        self.page.paste(picture, at)
        right, bottom = at[0] + picture.width, at[1] + picture.height
        self.draw.rectangle((at[0] - 1, at[1] - 1, right, bottom), outline=(200, 200, 200))

    def swatch(self, at: tuple[int, int], colour: torch.Tensor, side: int = 14) -> None:
        """A square of a colour."""
        fill = tuple(int(v) for v in (colour * 255).round())
        box = (at[0], at[1], at[0] + side, at[1] + side)
        self.draw.rectangle(box, fill=fill, outline=(120, 120, 120))

    def bar(self, at: tuple[int, int], width: int, height: int, colour: torch.Tensor) -> None:
        """A bar of a colour, its top left corner at a place; one of no width is a line."""
        fill = tuple(int(v) for v in (colour * 255).round())
        self.draw.rectangle((at[0], at[1], at[0] + max(width, 1) - 1, at[1] + height), fill=fill)

    def scale(self, at: tuple[int, int], width: int, height: int = 8) -> None:
        """A bar of the colours of heat maps."""
        bar = heat(torch.linspace(0, 1, width).expand(height, width))
        self.page.paste(as_image(bar), at)


def as_image(pixels: torch.Tensor) -> Image:
    """(3, H, W) from 0 to 1 as a picture."""
    from PIL import Image

    return Image.fromarray((pixels.clamp(0, 1) * 255).round().byte().movedim(0, -1).numpy())


def resized(pixels: torch.Tensor, size: tuple[int, int], *, smooth: bool = True) -> torch.Tensor:
    """(C, H, W) at another size."""
    if not smooth:
        return F.interpolate(pixels[None], size, mode="nearest-exact")[0]
    return F.interpolate(pixels[None], size, mode="bilinear", antialias=True)[0]


def palette(count: int) -> torch.Tensor:
    """Colours [count, 3]; the first eight can be told apart by colour-blind readers too."""
    found = [tuple(int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)) for c in COLOURS]
    for index in range(len(found), count):
        hue = index * 0.61803398875 % 1  # the golden ratio spreads hues whatever their number
        found.append(colorsys.hsv_to_rgb(hue, (0.85, 0.55, 0.7)[index % 3], (0.9, 0.65)[index % 2]))
    return torch.tensor(found[:count])


def heat(values: torch.Tensor) -> torch.Tensor:
    """Values (H, W) from 0 to 1 as colours (3, H, W)."""
    anchors = torch.tensor(_HEAT) / 255
    place = values.clamp(0, 1) * (len(_HEAT) - 1)
    low = place.floor().long().clamp(max=len(_HEAT) - 2)
    share = (place - low)[..., None]
    return (anchors[low] * (1 - share) + anchors[low + 1] * share).movedim(-1, 0)


def edges(labels: torch.Tensor) -> torch.Tensor:
    """Where regions of (H, W) meet, two pixels wide."""
    found = torch.zeros_like(labels, dtype=torch.bool)
    for axis in (0, 1):
        length = labels.shape[axis] - 1
        apart = labels.narrow(axis, 0, length) != labels.narrow(axis, 1, length)
        found.narrow(axis, 0, length).logical_or_(apart)
        found.narrow(axis, 1, length).logical_or_(apart)
    return found
