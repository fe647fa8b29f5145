"""`predict`: what a model sees in images, as lines, as data and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..data.labels import named
from .canvas import PALE, Canvas, edges, palette, resized

if TYPE_CHECKING:
    from PIL.Image import Image

_WIDTH, _MARGIN, _LEGEND, _SIDE = 1000, 24, 260, 340
_ROW, _CAPTION, _MOST = 24, 26, 12


@dataclass(frozen=True)
class ImagePrediction:
    """What a model sees in one image.

    Attributes:
        image: the file.
        pixels: (3, H, W), from 0 to 1: what the model was given.
        shares: of the best classes: index and probability, or share of the area.
        classes: how many there are, and
        names: what they are called.
        labels: (H, W), the best class of each pixel; None where the image has one label.
    """

    image: str
    pixels: torch.Tensor
    shares: tuple[tuple[int, float], ...]
    classes: int
    names: tuple[str, ...]
    labels: torch.Tensor | None = None

    def __str__(self) -> str:
        rows = (f"  {100 * share:5.1f} %  {named(self.names, k)}" for k, share in self.shares)
        return "\n".join([self.image, *rows])

    def to_json(self) -> dict[str, Any]:
        """The numbers."""
        what = "probability" if self.labels is None else "share"
        size = {} if self.labels is None else {"size": list(self.labels.shape)}
        classes = [
            {"class": named(self.names, k), "index": k, what: share} for k, share in self.shares
        ]
        return {"image": self.image, **size, "classes": classes}

    @property
    def height(self) -> int:
        """Of its part of the page."""
        high = round(_SIDE * self.pixels.shape[-2] / self.pixels.shape[-1])
        return _CAPTION + max(high, _ROW * min(len(self.shares), _MOST)) + _MARGIN

    def draw(self, page: Canvas, top: int) -> None:
        """Puts the image, its map if there is one, and the classes on a page."""
        size = round(_SIDE * self.pixels.shape[-2] / self.pixels.shape[-1]), _SIDE
        place = top + _CAPTION
        page.text((_MARGIN, top), self.image, ink=PALE, width=_WIDTH - 2 * _MARGIN)
        page.panel((_MARGIN, place), resized(self.pixels, size))
        left, colours = 2 * _MARGIN + _SIDE, palette(max(self.classes, 1))
        if self.labels is not None:
            page.panel((left, place), self._painted(size, colours))
            left += _SIDE + _MARGIN
        for row, (index, share) in enumerate(self.shares[:_MOST]):
            y = place + _ROW * row
            text, width = f"{100 * share:5.1f} %", _WIDTH - left - _MARGIN
            if self.labels is None:
                page.bar((left + 68, y + 17), round(share * (width - 68)), 3, colours[index])
                page.text((left + 68, y), named(self.names, index), width=width - 68)
                page.text((left, y), text, ink=PALE)
            else:
                page.swatch((left, y + 2), colours[index])
                page.text((left + 24, y), named(self.names, index), width=width - 84)
                page.text((left + width - 56, y), text, ink=PALE)

    def _painted(self, size: tuple[int, int], colours: torch.Tensor) -> torch.Tensor:
        """The map in colours over the photograph, white where classes meet."""
        assert self.labels is not None
        labels = resized(self.labels[None].float(), size, smooth=False)[0].long()
        grey = resized(self.pixels, size).mean(0, keepdim=True)
        painted = 0.65 * colours[labels].movedim(-1, 0) + 0.35 * grey
        return torch.where(edges(labels), 1.0, painted)


def best(scores: torch.Tensor, count: int) -> tuple[tuple[int, float], ...]:
    """The best classes of scores (classes) with their probabilities."""
    found = scores.double().softmax(-1).topk(min(count, len(scores)))
    return tuple(zip(found.indices.tolist(), found.values.tolist(), strict=True))


def areas(labels: torch.Tensor) -> tuple[tuple[int, float], ...]:
    """The classes of a map with their shares of the area, largest first."""
    counts = torch.bincount(labels.flatten())
    order = counts.argsort(descending=True, stable=True).tolist()
    return tuple((k, int(counts[k]) / labels.numel()) for k in order if counts[k])


def page_of(predictions: Sequence[ImagePrediction], title: str) -> Image:
    """All predictions below each other."""
    page = Canvas(_WIDTH, 62 + sum(each.height for each in predictions))
    page.text((_MARGIN, 20), title, size=22, width=_WIDTH - 2 * _MARGIN)
    top = 62
    for each in predictions:
        each.draw(page, top)
        top += each.height
    return page.page
