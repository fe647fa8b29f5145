"""Which axes of a stream are channels and which are positions, and windows over positions."""

from __future__ import annotations

import math

import torch

from .attention import Core
from .flow import Op
from .kinds import is_conv, is_norm, strip
from .rows import compact, positions_of


def channel_axis(op: Op, width: int | None) -> int:
    """The axis of the channels, given how many a layer of the block takes or makes, if known."""
    shape = op.shape
    if len(shape) != 4 or width is None:
        return 1 if len(shape) == 4 else -1
    if (shape[1] == width) != (shape[-1] == width):
        return 1 if shape[1] == width else -1
    # Both lengths are the same: what reads the stream decides.
    readers = [u for u in op.users if is_conv(u) or "batch" in u.name.lower()]
    return 1 if readers else -1


def width_of(op: Op, width: int | None) -> int:
    """Number of channels."""
    return op.shape[channel_axis(op, width)]


def tokens_of(op: Op, dim: int) -> int:
    """Number of positions."""
    return math.prod(op.shape[1:]) // max(1, dim)


def layout_of(op: Op, width: int | None) -> str:
    """`sequence`, `nhwc` or `nchw`."""
    if len(op.shape) != 4:
        return "sequence"
    return "nchw" if channel_axis(op, width) == 1 else "nhwc"


def window(
    core: Core, point: Op, width: int | None, seen: int
) -> tuple[tuple[int, int] | None, bool]:
    """Height and width of the windows that an attention looks at, and whether it has such.

    Args:
        core: the attention.
        point: the stream the block starts from.
        width: number of channels there, if known.
        seen: number of keys per query.
    """
    total = tokens_of(point, width_of(point, width))
    if not 0 < seen < total or core.scores.name == "einsum" or len(point.shape) not in (3, 4):
        return None, False
    found = positions_of(core.value, point, _numbered(point, channel_axis(point, width), total))
    if found is None or not isinstance(found.index, torch.Tensor) or found.index.dim() < 2:
        return None, False
    index = compact(found.index)
    first = index[(0,) * (index.dim() - 2)]
    positions = sorted(set(first[:, 0].tolist()))
    return _rectangle(positions, seen), len(positions) == seen


def _numbered(point: Op, axis: int, total: int) -> torch.Tensor:
    """Positions 0, 1, ... of a stream, in the stream's shape."""
    lengths = list(point.shape)
    lengths[0] = lengths[axis] = 1
    return torch.arange(total, device="cpu").reshape(lengths).expand(point.shape)


def _rectangle(positions: list[int], count: int) -> tuple[int, int] | None:
    """Height and width of evenly spaced rows and columns of positions."""
    if len(positions) != count or count < 4:
        return None
    step = positions[1] - positions[0]
    columns = 1
    while columns < count and positions[columns] - positions[columns - 1] == step:
        columns += 1
    if columns == count or count % columns:
        return None
    stride = positions[columns] - positions[0]
    rows = count // columns
    starts = (positions[0] + r * stride for r in range(rows))
    expected = [start + c * step for start in starts for c in range(columns)]
    return (rows, columns) if expected == positions else None


def feeding_norm(op: Op, region: int) -> Op | None:
    """The norm in `region` whose result `op` reads, perhaps joined with other tensors."""
    queue = list(op.inputs)
    while queue:
        source = strip(queue.pop(0))
        if not source.bit & region:
            continue
        if is_norm(source):
            return source
        if source.name in ("cat", "stack", "concat"):
            queue += source.inputs
    return None


def following_norm(op: Op, region: int) -> Op | None:
    """The norm in `region` that reads `op`."""
    for user in op.users:
        if not user.bit & region:
            continue
        if is_norm(user):
            return user
        if strip(user) is strip(op) and (found := following_norm(user, region)):
            return found
    return None
