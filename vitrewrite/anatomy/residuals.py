"""Branches as sites: what each residual sum of a block adds to its stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from .blocks import place
from .flow import Op
from .kinds import is_norm, strip
from .layout import channel_axis, following_norm
from .sites import Block, Branch, Place
from .trunk import BlockGroup, Residual


def with_branches(blocks: Sequence[Block], groups: Sequence[BlockGroup]) -> tuple[Block, ...]:
    """The blocks with the branches of their sums."""
    pairs = zip(blocks, groups, strict=True)
    return tuple(replace(block, branches=tuple(_branches(block, group))) for block, group in pairs)


def _branches(block: Block, group: BlockGroup) -> Iterator[Branch]:
    names = _names(block, group)
    for residual, name in zip(group.sums, names, strict=True):
        index = _index(residual)
        if index is not None:
            owner = block.path if residual is group.last else f"{block.path}.{name}"
            axis = channel_axis(residual.sum, block.dim)
            yield Branch(
                f"{block.role}.{name}",
                owner,
                place(residual.sum),
                index,
                block.dim,
                axis,
                strip(residual.stream) is residual.point,
                first_norm=_place(following_norm(residual.point, residual.region)),
                last_norm=_place(_last_norm(residual)),
            )


def _last_norm(residual: Residual) -> Op | None:
    """The norm that a branch ends in."""
    last = strip(residual.branch)
    return last if is_norm(last) else None


def _place(op: Op | None) -> Place | None:
    return None if op is None else place(op)


def _names(block: Block, group: BlockGroup) -> list[str]:
    """`attn_branch`, `mlp_branch`, and what is neither or both, numbered."""
    names: list[str] = []
    for residual in group.sums:
        attn = any(core.op.bit & residual.region for core in group.cores)
        mlp = block.mlp is not None and residual is group.last
        beside = mlp and residual.point.before & group.first.sum.bit == 0 and len(group.sums) > 1
        if beside:  # the region of the second of two sums side by side holds the first
            attn = False
        kind = "attn_branch" if attn else "mlp_branch"
        names.append(kind if attn != mlp else f"branch[{len(names)}]")
    return names


def _index(residual: Residual) -> int | None:
    """Which argument of its sum a branch is."""
    nodes = dict(zip(residual.sum.inputs, residual.sum.arguments, strict=True))
    args = residual.sum.node.args[:2]
    return next((i for i, arg in enumerate(args) if arg is nodes[residual.branch]), None)
