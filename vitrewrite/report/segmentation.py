"""`show segmentation`: what a query decoder makes of an image, and where one query looks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..anatomy.decoder import Decoder
from ..anatomy.sites import Place
from ..data import Preprocessing
from ..data.labels import class_names, named
from ..editing.taps import WeightsTap, observe
from ..errors import MatchError, UsageError
from ..rewrite.rewritten import Rewritten
from ..tasks.choice import coarsest_strides
from ..tasks.queries import CLASSES, MASKS, semantic
from ..tracing.guards import check_input
from .canvas import INK, PALE, Canvas, edges, heat, palette, resized

if TYPE_CHECKING:
    from PIL.Image import Image

_WIDTH, _MARGIN, _LEGEND = 1240, 24, 220
_CAPTION = 26  # above a panel
_MOST = 14  # classes in the legend


@dataclass(frozen=True)
class Look:
    """Where a query looks in one level.

    Attributes:
        layer: the decoder layer, the last that attends to the level.
        stride: pixels of the image per cell.
        weights: (h, w), their sum is 1.
    """

    layer: str
    stride: int
    weights: torch.Tensor


@dataclass(frozen=True)
class SegmentationPicture:
    """What a model makes of one image.

    Attributes:
        title: the model.
        image: (3, H, W), from 0 to 1.
        labels: (H, W), the best class of each pixel.
        names: of the classes.
        query: the index of one query.
        belief: the query's best class and its probability.
        mask: (H, W), the query's mask from 0 to 1.
        looks: its attention, coarsest level first.
    """

    title: str
    image: torch.Tensor
    labels: torch.Tensor
    names: tuple[str, ...]
    query: int
    belief: tuple[int, float]
    mask: torch.Tensor
    looks: tuple[Look, ...]

    @classmethod
    def of(
        cls,
        rewritten: Rewritten,
        image: torch.Tensor,
        pixels: torch.Tensor,
        query: int | None = None,
    ) -> SegmentationPicture:
        """Runs a model.

        Args:
            rewritten: a model with a query decoder.
            image: (3, H, W) from 0 to 1.
            pixels: the same as the model takes it.
            query: the one to look at; by default the most certain one.

        Raises:
            MatchError: VR301 if the model has no query decoder.
            UsageError: VR908 if it has no such query.
        """
        decoder = decoder_of(rewritten)
        taps = _taps(rewritten, decoder)
        places = [place for tap in taps.values() for place in tap.places]
        with torch.no_grad():
            output, seen = observe(rewritten.module.eval(), (pixels[None],), places)
        size = (int(image.shape[-2]), int(image.shape[-1]))
        classes, masks = output[CLASSES][0], output[MASKS][0]
        shares = classes.softmax(-1)[:, :-1]
        chosen = _chosen(shares, query)
        best = int(shares[chosen].argmax())
        return cls(
            title=f"{rewritten.spec.name} on {rewritten.model_name}, weights {_weights(rewritten)}",
            image=image,
            labels=semantic(classes, masks, size).argmax(0),
            names=_names(rewritten, shares.shape[-1]),
            query=chosen,
            belief=(best, float(shares[chosen, best])),
            mask=resized(masks[chosen][None].float(), size)[0].sigmoid(),
            looks=tuple(_looks(rewritten, taps, seen, chosen, size)),
        )

    @property
    def shares(self) -> dict[int, float]:
        """The classes in the picture by area, largest first, as fractions."""
        counts = torch.bincount(self.labels.flatten())
        order = counts.argsort(descending=True, stable=True).tolist()
        return {k: int(counts[k]) / self.labels.numel() for k in order if counts[k]}

    def to_json(self) -> dict[str, Any]:
        """The numbers in the picture."""
        return {
            "size": list(self.labels.shape),
            "classes": {self.names[k]: share for k, share in self.shares.items()},
            "query": self.query,
            "class": self.names[self.belief[0]],
            "probability": self.belief[1],
            "attention": {look.layer: list(look.weights.shape) for look in self.looks},
        }

    def picture(self) -> Image:
        """The page: image and map with a legend, below them the query's mask and attention."""
        upper = (_WIDTH - _LEGEND - 4 * _MARGIN) // 2
        lower = (_WIDTH - (2 + len(self.looks)) * _MARGIN) // (1 + len(self.looks))
        lower = min(lower, upper)
        ratio = self.image.shape[-2] / self.image.shape[-1]
        sides = [round(width * ratio) for width in (upper, lower)]
        first = 62
        second = first + _CAPTION + sides[0] + 58
        page = Canvas(_WIDTH, second + _CAPTION + sides[1] + _MARGIN + 26)
        page.text((_MARGIN, 20), self.title, size=22, width=_WIDTH - 2 * _MARGIN)
        self._upper(page, first, (sides[0], upper))
        self._lower(page, second, (sides[1], lower))
        return page.page

    def _upper(self, page: Canvas, top: int, size: tuple[int, int]) -> None:
        colours = palette(len(self.names))
        page.text((_MARGIN, top), "image", ink=PALE)
        page.panel((_MARGIN, top + _CAPTION), resized(self.image, size))
        left = size[1] + 2 * _MARGIN
        page.text((left, top), "classes", ink=PALE)
        labels = resized(self.labels[None].float(), size, smooth=False)[0].long()
        grey = resized(self.image, size).mean(0, keepdim=True)
        painted = 0.7 * colours[labels].movedim(-1, 0) + 0.3 * grey
        page.panel((left, top + _CAPTION), torch.where(edges(labels), 1.0, painted))
        left += size[1] + _MARGIN
        fitting = max(1, min(_MOST, (size[0] + 4) // 24))
        shares = list(self.shares.items())
        for row, (index, share) in enumerate(shares[:fitting]):
            y = top + _CAPTION + 24 * row
            page.swatch((left, y + 2), colours[index])
            page.text((left + 24, y), self.names[index], width=_LEGEND - 84)
            page.text((left + _LEGEND - 52, y), f"{100 * share:4.1f} %", ink=PALE)
        if len(shares) > fitting:
            rest = 100 * sum(share for _, share in shares[fitting:])
            y = top + _CAPTION + 24 * fitting
            page.text((left, y), f"and {len(shares) - fitting} more: {rest:.1f} %", ink=PALE)

    def _lower(self, page: Canvas, top: int, size: tuple[int, int]) -> None:
        index, share = self.belief
        about = f"query {self.query}: {self.names[index]}, {100 * share:.0f} %"
        page.text((_MARGIN, top - 34), about, size=18, width=_WIDTH - 2 * _MARGIN)
        dark = 0.35 * resized(self.image, size).mean(0, keepdim=True)
        mask = resized(self.mask[None], size)[0]
        outline = edges((mask > 0.5).long())
        page.text((_MARGIN, top), "mask", ink=PALE)
        image = resized(self.image, size)
        page.panel((_MARGIN, top + _CAPTION), torch.where(outline, 1.0, image * (0.2 + 0.8 * mask)))
        for column, look in enumerate(self.looks, 1):
            left = _MARGIN + column * (size[1] + _MARGIN)
            page.text((left, top), f"{look.layer}, 1/{look.stride}", ink=PALE, width=size[1])
            values = resized(look.weights[None], size, smooth=False)[0]
            values = values / values.max().clamp(min=1e-12)
            painted = 0.85 * heat(values**0.5) + dark * (1 - values**0.5)
            page.panel((left, top + _CAPTION), torch.where(outline, 1.0, painted))
        if self.looks:
            y = top + _CAPTION + size[0] + 12
            left = _MARGIN + size[1] + _MARGIN
            page.text((left, y), "attention: none", size=13, ink=INK)
            page.scale((left + 104, y + 5), 120)
            page.text((left + 234, y), "most in the level", size=13, ink=INK)


def prepared(rewritten: Rewritten, image: Image) -> tuple[torch.Tensor, torch.Tensor]:
    """An image near the size that a model was captured for: (3, H, W) from 0 to 1, and normalised.

    The ratio of its sides is kept as far as sides have to be multiples; a model that is fixed in
    size gets that.
    """
    wanted = Preprocessing.of(rewritten.base)
    captured = wanted.size[1], wanted.size[2]
    size = captured
    if not _is_fixed(rewritten):
        strides = coarsest_strides(rewritten.result.anatomy, captured)
        scale = math.sqrt(captured[0] * captured[1] / (image.height * image.width))
        sides = image.height * scale, image.width * scale
        size = tuple(max(1, round(s / d)) * d for s, d in zip(sides, strides, strict=True))  # type: ignore[assignment]
    from torchvision.transforms import v2

    resize = v2.Compose([v2.Resize(size), v2.PILToTensor()])
    eight: torch.Tensor = resize(image.convert(wanted.mode))
    return (eight / 255).expand(3, -1, -1), wanted.normalised(eight)


def _is_fixed(rewritten: Rewritten) -> bool:
    """Whether a model takes images of one size only."""
    template = rewritten.result.editor.unit("").template
    return template is not None and any(n.target is check_input for n in template.graph.nodes)


def decoder_of(rewritten: Rewritten) -> Decoder:
    """The query decoder of a model.

    Raises:
        MatchError: VR301 if it has none.
    """
    decoder = rewritten.result.anatomy.decoder
    if decoder is None:
        raise MatchError(
            "VR301",
            f"'{rewritten.model_name}' has no decoder with queries",
            suggestion="take a model such as hf:mask2former-r50",
        )
    return decoder


def _names(rewritten: Rewritten, count: int) -> tuple[str, ...]:
    """What the model's data or configuration call its classes; else their numbers."""
    names = class_names(rewritten.base, count)
    return tuple(named(names, k) for k in range(count))


def _weights(rewritten: Rewritten) -> str:
    return f"{rewritten.weights}, tuned" if rewritten.trained else rewritten.weights


def _chosen(shares: torch.Tensor, query: int | None) -> int:
    if query is None:
        return int(shares.amax(-1).argmax())
    if not 0 <= query < len(shares):
        raise UsageError(
            "VR908", f"there is no query {query}", notes=[f"valid: 0..{len(shares) - 1}"]
        )
    return query


def _taps(rewritten: Rewritten, decoder: Decoder) -> dict[int, WeightsTap]:
    """By level, the tap of the last layer that attends to it."""
    found = {}
    for level in decoder.levels:
        attention = decoder.layers[level.layers[-1]].cross_attn
        tap = WeightsTap.of(rewritten.result.editor, attention)
        if tap is not None:
            found[level.index] = tap
    return found


def _looks(
    rewritten: Rewritten,
    taps: Mapping[int, WeightsTap],
    seen: Mapping[Place, Any],
    query: int,
    size: tuple[int, int],
) -> list[Look]:
    """The attention of a query over whole levels; what attends to something else is left out."""
    decoder, looks = decoder_of(rewritten), []
    captured = rewritten.result.example[0].shape[-2:]
    for level in decoder.levels:
        tap = taps.get(level.index)
        if tap is None or level.grid is None:
            continue
        weights = tap.weights(seen)[0, query]
        sides = zip(size, level.grid, captured, strict=True)
        height, width = (side * cells // own for side, cells, own in sides)
        if weights.numel() == height * width:
            layer = decoder.layers[level.layers[-1]].role
            looks.append(Look(layer, size[0] // height, weights.view(height, width).float()))
    return looks
