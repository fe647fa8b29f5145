"""`show attention`: where a patch looks, head by head, after figure 5 of He et al., TPAMI 2024."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..anatomy import analyse
from ..anatomy.sites import Attention, Block
from ..editing.located import Located, located
from ..editing.taps import WeightsTap, observe
from ..errors import MatchError, UsageError
from ..rewrite.rewritten import Rewritten
from ..text import listing, plural
from .canvas import PALE, Canvas, heat, resized
from .tokens import DROPPED, composed, traced

if TYPE_CHECKING:
    from PIL.Image import Image

_WIDTH, _MARGIN, _GAP, _CAPTION, _LABEL, _PHOTO = 1240, 24, 8, 18, 84, 150
_LARGEST, _NARROW = 150, 60  # pixels of a map; up to the latter heads have no numbers
_GREEN = torch.tensor([0.0, 0.85, 0.25])


@dataclass(frozen=True)
class Maps:
    """One block.

    Attributes:
        block: its number.
        heads: [heads, h, w], the probability with which each patch is looked at, the mean over
            images. What is missing from a sum of one goes to tokens that are no patches.
        query: the row and column of the patch that looks, on the grid of this block.
    """

    block: int
    heads: torch.Tensor
    query: tuple[int, int]

    def to_json(self) -> dict[str, Any]:
        """The numbers in the picture, by head."""
        width = self.heads.shape[-1]
        largest, place = self.heads.flatten(1).max(1)
        return {
            "block": self.block, "grid": list(self.heads.shape[1:]), "query": list(self.query),
            "largest": largest.tolist(), "at": [list(divmod(p, width)) for p in place.tolist()],
            "on_patches": self.heads.flatten(1).sum(1).tolist(),
        }  # fmt: skip


@dataclass(frozen=True)
class AttentionPicture:
    """Where one patch of an image looks in some blocks.

    Attributes:
        title: the spec and the model.
        image: [3, H, W] from 0 to 1, the first one.
        count: how many images the probabilities are the mean of.
        query: the row and column of the patch, on the grid of the first block.
        grid: the rows and columns of that.
    """

    title: str
    image: torch.Tensor
    count: int
    query: tuple[int, int]
    grid: tuple[int, int]
    maps: tuple[Maps, ...]

    @classmethod
    def of(
        cls,
        rewritten: Rewritten,
        images: Sequence[tuple[torch.Tensor, torch.Tensor]],
        blocks: Sequence[int] | None = None,
        query: tuple[int, int] | None = None,
    ) -> AttentionPicture:
        """Runs a model in evaluation.

        Args:
            rewritten: any model; one that is not rewritten has a spec without clauses.
            images: of each [3, H, W] from 0 to 1, and the same as the model takes it.
            blocks: by number; by default the first two and the last two that attend.
            query: the row and column of a patch, from 0; by default the one in the middle.

        Raises:
            MatchError: VR490 if a block does not attend, VR491 if its attention is not one among
                the tokens of an image, VR493 if there is no such block.
            UsageError: VR492 if there is no such patch.
        """
        grid = rewritten.result.anatomy.stream.grid
        if grid is None:
            raise MatchError("VR491", f"{rewritten.model_name} has no grid of patches")
        chosen = (grid[0] // 2, grid[1] // 2) if query is None else query
        _expect_patch(chosen, grid)
        looks = [
            _Looking(rewritten, block, grid, chosen) for block in _attending(rewritten, blocks)
        ]
        maps = tuple(look.maps([pixels for _, pixels in images]) for look in looks)
        spec = rewritten.spec
        title = f"{spec.name} on {rewritten.model_name}" if spec.clauses else rewritten.model_name
        return cls(title, images[0][0], len(images), chosen, grid, maps)

    def to_json(self) -> dict[str, Any]:
        """The numbers in the picture."""
        return {
            "title": self.title, "images": self.count, "query": list(self.query),
            "blocks": [each.to_json() for each in self.maps],
        }  # fmt: skip

    def picture(self) -> Image:
        """The page: the image with its patch, and a row of maps for each block."""
        ratio = self.grid[0] / self.grid[1]
        photo = round(_PHOTO * ratio), _PHOTO
        sides = [_side(len(each.heads)) for each in self.maps]
        rows = [round(side * ratio) + _CAPTION + _GAP for side in sides]
        top = 66 + photo[0] + _MARGIN + _GAP
        page = Canvas(_WIDTH, top + sum(rows) + _MARGIN)
        page.text((_MARGIN, 20), self.title, size=22, width=_WIDTH - 2 * _MARGIN)
        page.panel((_MARGIN, 66), _marked(resized(self.image, photo), self.query, self.grid))
        self._told(page, 2 * _MARGIN + _PHOTO)
        for each, side, tall in zip(self.maps, sides, rows, strict=True):
            self._row(page, top, each, (round(side * ratio), side))
            top += tall
        return page.page

    def _told(self, page: Canvas, left: int) -> None:
        row, column = self.query
        mean = f", the mean of {plural(self.count, 'image')}" if self.count > 1 else ""
        page.text((left, 66), f"attention of patch {row}, {column} (marked){mean}", size=16)
        page.text((left, 92), "one row per block, one map per head", ink=PALE)
        page.scale((left, 124), 160)
        page.text((left, 136), "0 to the largest of each map, which is written above it", ink=PALE)

    def _row(self, page: Canvas, top: int, each: Maps, size: tuple[int, int]) -> None:
        label = top + _CAPTION + size[0] // 2 - 10
        page.text((_MARGIN, label), f"block {each.block}", size=15)
        for head, values in enumerate(each.heads):
            left = _MARGIN + _LABEL + head * (size[1] + _GAP)
            most = float(values.max())
            name = f"{head}: " if size[1] > _NARROW else ""
            page.text((left, top), f"{name}{100 * most:.2g} %", size=11, ink=PALE, width=size[1])
            painted = resized(heat(values / max(most, 1e-12)), size, smooth=False)
            grid = values.shape[0], values.shape[1]
            page.panel((left, top + _CAPTION), _marked(painted, each.query, grid))


def _side(heads: int) -> int:
    """Pixels of a map, so that all heads are in a row."""
    return min(_LARGEST, (_WIDTH - 2 * _MARGIN - _LABEL) // heads - _GAP)


class _Looking:
    """What one patch looks at in one block."""

    def __init__(
        self, rewritten: Rewritten, block: Block, grid: tuple[int, int], query: tuple[int, int]
    ) -> None:
        self.rewritten, self.block, self.grid, self.query = rewritten, block, grid, query
        assert block.attn is not None
        self.attention: Attention = block.attn
        tap = WeightsTap.of(rewritten.result.editor, block.attn)
        assert tap is not None
        self.tap = tap

    def maps(self, images: Sequence[torch.Tensor]) -> Maps:
        """The mean over images."""
        found, query = zip(*map(self._look, images), strict=True)
        return Maps(self.block.index, torch.stack(found).mean(0), query[0])

    def _look(self, pixels: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """[heads, h, w] for one image [3, H, W], and where its patch is on that grid."""
        last, before = self.tap.places[-1], [0]
        module = self.rewritten.module.eval()
        with torch.no_grad(), traced(module) as steps:

            def count(value: Any) -> Any:
                before[0] = len(steps)
                return value

            _, seen = observe(module, (pixels[None],), self.tap.places, {last: count})
        weights = self.tap.by_head(seen).float()
        if len(weights) == 1 and self.rewritten.result.anatomy.stream.layout == "sequence":
            return self._of_sequence(weights[0], steps[: before[0]]), self.query
        return self._of_groups(weights, pixels)

    def _of_sequence(self, weights: torch.Tensor, steps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Of [heads, tokens, tokens], all of an image."""
        stream = self.rewritten.result.stream
        groups = composed(self.rewritten, [into[0] for into in steps])
        prefix = stream.known(2 * self.block.index).prefix
        suffix = self.rewritten.result.anatomy.stream.suffix_tokens
        self._expect(weights, prefix + int(groups.max()) + 1 + suffix)
        own = int(groups.view(self.grid)[self.query])
        if own == DROPPED:
            raise UsageError(
                "VR492",
                f"patch {_said(self.query)} was dropped before {self.block.role}",
                suggestion="give another one with --query",
            )
        there = groups.clamp(min=0)
        row = weights[:, prefix + own, prefix:] / torch.bincount(there).clamp(min=1)[:, None].T
        found = row[:, there] * (groups != DROPPED)
        return found.view(-1, *self.grid)

    def _of_groups(
        self, weights: torch.Tensor, pixels: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[int, int]]:
        """Of [groups, heads, tokens, tokens], such as windows, which see each a part of it."""
        base = self.rewritten.base
        block = next(b for b in analyse(base).blocks if b.index == self.block.index)
        where = block.attn and located(base, block, block.attn, (pixels[None],))
        count, heads, length, _ = weights.shape
        if not where or where.tokens.numel() != count * length:
            raise self._refused(weights)
        self._expect(weights, length)
        tokens, prefix, grid = self._on_grid(where)
        row, column = (q * g // own for q, g, own in zip(self.query, grid, self.grid, strict=True))
        wanted = prefix + row * grid[1] + column
        group, position = (tokens.view(count, length) == wanted).nonzero()[0].tolist()
        keys = tokens.view(count, length)[group] - prefix
        found = torch.zeros(heads, math.prod(grid))
        found[:, keys[keys >= 0]] = weights[group, :, position][:, keys >= 0]
        return found.view(heads, *grid), (row, column)

    def _on_grid(self, where: Located) -> tuple[torch.Tensor, int, tuple[int, int]]:
        """The tokens, how many of them are a prefix, and the grid of the others."""
        if where.grid is not None:
            return where.tokens, 0, where.grid
        prefix = self.rewritten.result.anatomy.stream.prefix_tokens
        count = int(where.tokens.max()) + 1 - prefix
        height = round(math.sqrt(count * self.grid[0] / self.grid[1]))
        return where.tokens, prefix, (height, count // height)

    def _expect(self, weights: torch.Tensor, tokens: int) -> None:
        if weights.shape[-2:] != (tokens, tokens):
            raise self._refused(weights)

    def _refused(self, weights: torch.Tensor) -> MatchError:
        queries, keys = weights.shape[-2:]
        return MatchError(
            "VR491",
            f"the attention of {self.block.role} is from {queries} values to {keys} that "
            "are not the tokens of the image",
            suggestion="give another block with --block",
        )


def _attending(rewritten: Rewritten, wanted: Sequence[int] | None) -> list[Block]:
    """The blocks to look at, all of which attend among tokens."""
    anatomy, editor = rewritten.result.anatomy, rewritten.result.editor
    blocks = {block.index: block for block in anatomy.blocks}
    gone = {block.index for block, _ in anatomy.gone.values()}
    there = [i for i, b in blocks.items() if b.attn and WeightsTap.of(editor, b.attn)]
    notes = [f"blocks that attend: {listing(map(str, there))}"] if there else []
    if wanted is None:
        wanted = list(dict.fromkeys([*there[:2], *there[-2:]]))
    for index in wanted:
        if index not in blocks and index not in gone:
            raise MatchError("VR493", f"there is no blocks[{index}]", notes=notes)
        if index not in there:
            why = "was dropped" if index in gone else "does not attend"
            raise MatchError("VR490", f"blocks[{index}] {why}", notes=notes)
        attention = blocks[index].attn
        if attention is not None and attention.over != "tokens":
            raise MatchError("VR491", f"blocks[{index}] attends over {attention.over}")
    if not wanted:
        raise MatchError("VR490", f"no block of {rewritten.model_name} attends")
    return [blocks[index] for index in wanted]


def _expect_patch(query: tuple[int, int], grid: tuple[int, int]) -> None:
    if not all(0 <= q < g for q, g in zip(query, grid, strict=True)):
        raise UsageError(
            "VR492",
            f"there is no patch {_said(query)}",
            notes=[f"rows: 0..{grid[0] - 1}", f"columns: 0..{grid[1] - 1}"],
        )


def _said(patch: tuple[int, int]) -> str:
    return f"{patch[0]},{patch[1]}"


def _marked(image: torch.Tensor, patch: tuple[int, int], grid: tuple[int, int]) -> torch.Tensor:
    """An image [3, H, W] with a green frame around a patch."""
    sides = zip(patch, grid, image.shape[-2:], strict=True)
    (top, bottom), (left, right) = [(n * p // g, n * (p + 1) // g) for p, g, n in sides]
    made, thick = image.clone(), 2 if right - left > 8 else 1
    inside = torch.zeros(image.shape[-2:], dtype=torch.bool)
    inside[max(top - 1, 0) : bottom + 1, max(left - 1, 0) : right + 1] = True
    inside[top + thick - 1 : bottom - thick + 1, left + thick - 1 : right - thick + 1] = False
    made[:, inside] = _GREEN[:, None]
    return made
