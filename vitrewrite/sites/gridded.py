"""The patches that the branches of a block are about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..anatomy.sites import Place
from ..editing.facts import is_fixed, sides
from ..editing.value import Value, shape_of

if TYPE_CHECKING:
    from .branch import BranchSite


@dataclass(frozen=True)
class Grid:
    """The patches of a value.

    Attributes:
        size: height and width, where no other image than that of the capture is taken; or None.
        sides: both while the model runs, where images may be of any size; or nothing. A value that
            is a map itself has neither.
    """

    size: tuple[int, int] | None = None
    sides: tuple[Value, ...] = ()


def grid(site: BranchSite) -> Grid:
    """The patches of the stream of a branch.

    Raises:
        RewriteError: VR410 if they are no full grid, or if other tokens stand behind them.
    """
    stream, block = site.context.stream, site.block.block
    if len(shape_of(site._stream)) == 4:
        return Grid()
    if site.context.anatomy.stream.suffix_tokens:
        raise site.unfit("there are other tokens behind the patches")
    _expect_whole(site)
    if stream.reader is not None:
        stream.reader.declare(["grid"], "reads")
    if block.stage == 0 and len(shape_of(site.editor.node(block.input))) == 3:
        if is_fixed(site.editor):
            return Grid(stream.at(site._position).grid)
        return Grid(sides=site.block.input.grid_size)
    place, axes = (block.map, (2, 3)) if block.map else (block.input, (1, 2))
    shape = site.shape_at(place)
    if len(shape) != 4:
        raise site.unfit("no map says which patches its tokens are")
    planned = shape[axes[0]], shape[axes[1]]
    if is_fixed(site.editor):
        return Grid(planned)
    found = sides(site.editor, place, axes, planned)
    return Grid(sides=(Value(found[0]), Value(found[1])))


def _expect_whole(site: BranchSite) -> None:
    if not site.context.stream.whole(site._position):
        notes = [f"merged by: {by}"] if (by := site.block.cause("grid")) else []
        raise site.unfit("no full grid of patches is left there", notes=notes)


def patches(site: BranchSite) -> tuple[int, int]:
    """How many patches a branch is about down and across, at the size of the capture.

    Raises:
        RewriteError: VR410 if they are no grid.
    """
    block = site.block.block
    shape = site.shape_at(Place(site.branch.sum.unit, site._stream.name))
    axes = (1, 2) if site.axis == -1 else (2, 3)
    if len(shape) != 4 and block.map is not None:
        shape, axes = site.shape_at(block.map), (2, 3)
    if len(shape) == 4:
        return shape[axes[0]], shape[axes[1]]
    _expect_whole(site)
    found, start = site.context.stream.known(site._position).grid, site.context.stream.start.grid
    stream = site.context.anatomy.stream
    others = stream.prefix_tokens + stream.suffix_tokens
    if found is None or start is None or shape[1] != others + start[0] * start[1]:
        raise site.unfit("its tokens are no full grid of patches")
    return found
