"""`show tokens`: which patches of an image ended in one token, after Bolya et al., ICLR 2023."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from ..data import Preprocessing
from ..errors import MatchError
from ..rewrite.rewritten import Rewritten
from ..text import plural
from .canvas import PALE, Canvas, resized

if TYPE_CHECKING:
    from PIL.Image import Image

_WIDTH, _MARGIN, _CAPTION = 1240, 24, 30
DROPPED = -1
"""In `into`: the token is in no token any more."""


@dataclass(frozen=True)
class TokenMap:
    """What a model makes of the patches of one image.

    Attributes:
        title: of the spec.
        groups: [h, w], for each patch the token that it is in at the end, or -1 if it was dropped.
        tokens: how many tokens there are, before the first change of them and after each.
    """

    title: str
    groups: torch.Tensor
    tokens: tuple[int, ...]

    @classmethod
    def of(cls, rewritten: Rewritten, pixels: torch.Tensor) -> TokenMap:
        """Runs a model in evaluation.

        Args:
            rewritten: a model that merges or drops tokens.
            pixels: [3, H, W], as the model takes it.

        Raises:
            MatchError: VR301 if no clause changes how many tokens there are.
        """
        title = rewritten.spec.name
        with torch.no_grad(), traced(rewritten.module.eval()) as seen:
            rewritten.module(pixels[None])
        if not seen:
            raise MatchError(
                "VR301",
                f"'{title}' merges and drops no tokens",
                suggestion="add a clause such as: insert merge.bdm() after blocks[6].attn",
            )
        height, width = grid_of(rewritten, pixels.shape[-2:])
        groups = composed(rewritten, [into[0] for into in seen]).view(height, width)
        counts = (seen[0].shape[1], *(int(into[0].max()) + 1 for into in seen))
        return cls(title, groups, counts)

    @property
    def kept(self) -> int:
        """How many tokens hold patches."""
        return len({int(group) for group in self.groups.flatten()} - {DROPPED})

    @property
    def counted(self) -> str:
        """How many tokens there are, in words."""
        first, *_, last = self.tokens
        changes = len(self.tokens) - 1
        return f"{first} tokens, {last} after {plural(changes, 'change')}"

    def to_json(self) -> dict[str, Any]:
        """The numbers in the picture."""
        dropped = int((self.groups == DROPPED).sum())
        return {"spec": self.title, "grid": list(self.groups.shape), "tokens": list(self.tokens),
                "groups": self.kept, "dropped": dropped}  # fmt: skip

    def painted(self, image: torch.Tensor) -> torch.Tensor:
        """The image [3, H, W] with each group in its mean colour and an outline of its own.

        What was dropped is faded. Outlines are drawn from Python's generator at seed 0, in the
        order of the groups, as the authors do it.
        """
        size = image.shape[-2], image.shape[-1]
        labels = resized(self.groups[None].float(), size, smooth=False)[0].long()
        inside, index = _interior(labels), labels.clamp(min=0)
        count, held = int(labels.max()) + 1, (labels != DROPPED).float()
        flat = index.flatten()
        sums = torch.zeros(3, count).index_add_(1, flat, (image * held).flatten(1))
        means = sums / torch.bincount(flat, held.flatten(), count).clamp(min=1)
        draw = random.Random(0)
        outlines = torch.tensor([[draw.random() for _ in range(3)] for _ in range(count)]).T
        made = torch.where(inside, means[:, index], outlines[:, index])
        return torch.where(labels == DROPPED, 0.2 * image + 0.8, made)


def cropped(rewritten: Rewritten, image: Image) -> tuple[torch.Tensor, torch.Tensor]:
    """An image of the size that a model was captured for: [3, H, W] from 0 to 1, and normalised.

    It is made as small as it can be and keeps its middle, so that nothing is stretched.
    """
    from torchvision.transforms import v2

    wanted = Preprocessing.of(rewritten.base)
    size = wanted.size[1], wanted.size[2]
    scale = max(size[0] / image.height, size[1] / image.width)
    whole = [max(s, round(scale * side)) for s, side in zip(size, image.size[::-1], strict=True)]
    resize = v2.Compose([v2.Resize(whole), v2.CenterCrop(size), v2.PILToTensor()])
    eight: torch.Tensor = resize(image.convert(wanted.mode))
    return (eight / 255).expand(3, -1, -1), wanted.normalised(eight)


def tokens_picture(image: torch.Tensor, maps: Sequence[TokenMap]) -> Image:
    """The page: the image [3, H, W], and beside it the map of each spec."""
    columns = 1 + len(maps)
    side = (_WIDTH - (columns + 1) * _MARGIN) // columns
    size = round(side * image.shape[-2] / image.shape[-1]), side
    page = Canvas(_WIDTH, size[0] + 2 * _MARGIN + 2 * _CAPTION)
    large = resized(image, size)
    page.text((_MARGIN, _MARGIN), "image", size=18, width=side)
    page.panel((_MARGIN, _MARGIN + 2 * _CAPTION), large)
    for column, each in enumerate(maps, 1):
        left = _MARGIN + column * (side + _MARGIN)
        page.text((left, _MARGIN), each.title, size=18, width=side)
        page.text((left, _MARGIN + _CAPTION - 4), each.counted, ink=PALE, width=side)
        page.panel((left, _MARGIN + 2 * _CAPTION), each.painted(large))
    return page.page


@contextmanager
def traced(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    """While it lasts, each change of tokens tells `into` [batch, tokens] of what it is given."""
    seen: list[torch.Tensor] = []
    changers = [m for m in module.modules() if getattr(m, "traced", None) is False]

    def keep(told: nn.Module, given: object, results: Any) -> Any:
        seen.append(results[2])
        return results[:2]

    def note(told: nn.Module, given: object, results: Any) -> None:
        seen.append(results[2])

    told = [m for m in module.modules() if getattr(m, "traced", None) is True]
    hooks = [m.register_forward_hook(keep) for m in changers]
    hooks += [m.register_forward_hook(note) for m in told]
    try:
        for changer in changers:
            changer.traced = True  # type: ignore[assignment]
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
        for changer in changers:
            changer.traced = False  # type: ignore[assignment]


def composed(rewritten: Rewritten, steps: Sequence[torch.Tensor]) -> torch.Tensor:
    """For each patch the group that it is in behind some changes of tokens, the first ones.

    Where all patches have been given back in front of a change, what they were in before does not
    count any more.
    """
    stream = rewritten.result.stream
    groups = torch.arange(stream.start.patches or 0)
    for (position, _, _), into in zip(stream.sizes(), steps, strict=False):
        before = stream.known(position - 1)
        own = into[before.prefix :]  # of what is no prefix
        own = torch.where(own == DROPPED, own, own - before.prefix)
        if before.size is None:
            groups = own
        else:
            groups = torch.where(groups == DROPPED, groups, own[groups.clamp(min=0)])
    return groups


def _interior(labels: torch.Tensor) -> torch.Tensor:
    """Where all four neighbours are of the same group; pixels at the rim of [H, W] have fewer."""
    padded = F.pad(labels[None].float(), (1, 1, 1, 1), value=-2.0)[0]
    height, width = labels.shape
    near = [padded[1 + i : 1 + i + height, 1 + j : 1 + j + width] for i, j in _CROSS]
    return torch.stack([labels == each for each in near]).all(dim=0)


_CROSS = ((-1, 0), (1, 0), (0, -1), (0, 1))


def grid_of(rewritten: Rewritten, size: Sequence[int]) -> tuple[int, int]:
    """The grid of patches of an image [H, W]."""
    captured = rewritten.result.example[0].shape[-2:]
    grid = rewritten.result.anatomy.stream.grid
    assert grid is not None  # or nothing could change its tokens
    height, width = (int(s) * g // int(c) for s, g, c in zip(size, grid, captured, strict=True))
    return height, width
