"""What is before and behind the blocks: the patches, the stream, the final norm, heads."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

from .blocks import place, site
from .flow import Flow, FlowFrame, Op, union
from .kinds import (
    ADDS,
    JOINS,
    PASSES,
    PRODUCTS,
    is_conv,
    is_norm,
    is_transparent,
    matrix,
    norm_path,
    strip,
)
from .layout import layout_of, tokens_of, width_of
from .sites import Block, Classifier, Mean, Place, StreamFacts
from .stem import Stem
from .trunk import BlockGroup, Sets, Trunk

_HEAD_PATH = ADDS | JOINS | {"mean", "truediv", "div", "mul", "sum"}


def patch_embed(flow: Flow, stem: Stem, groups: list[BlockGroup], sets: Sets) -> str | None:
    """The largest module around the first layer on the image that adds no tokens or positions."""
    first = next((o for o in flow.members(sets.mixing) if o.before & sets.images), None)
    if first is None:
        return None
    marks = stem.marks + [r.sum for g in groups for r in g.sums]
    taken = {frame for op in marks for frame in op.frame.lineage()}
    best: FlowFrame | None = None
    for frame in first.frame.lineage():
        if frame in taken or frame.parent is None:
            break
        best = frame
    if best is not None:
        return best.path
    return first.path if first.module is not None else norm_path(first)


def find_stream(flow: Flow, groups: list[BlockGroup], stem: Stem, width: int | None) -> StreamFacts:
    """Layout, prefix, length and grid at the first block."""
    entry = _entry(groups[0])
    dim = width_of(entry, width)
    layout, tokens = layout_of(entry, width), tokens_of(entry, dim)
    grid: tuple[int, int] | None = None
    patches: Op | None = entry
    if layout == "nhwc":
        grid = entry.shape[1], entry.shape[2]
    elif layout == "nchw":
        grid = entry.shape[2], entry.shape[3]
    else:
        extra = sum(n for _, n in stem.prefix + stem.suffix)
        patches = _patches(flow, entry, tokens - extra)
        grid = None if patches is None else (patches.shape[2], patches.shape[3])
    read = reads(groups[-1].last.sum, flow.outputs)
    return StreamFacts(
        layout,
        tuple(p for p, _ in stem.prefix),
        tokens,
        grid,
        prefix_tokens=sum(n for _, n in stem.prefix),
        suffix_tokens=sum(n for _, n in stem.suffix),
        readout=None if read.others else read.tokens,
        bounds=read.bounds,
        patches=None if patches is None else place(patches),
        **(pooling(groups[-1].last.sum) if layout == "sequence" else {}),
    )


class Reads(NamedTuple):
    """What is read of the last block's result.

    Attributes:
        tokens: by position, each alone.
        bounds: where the sequence is cut, or a token is taken out of it.
        others: whether more is read than tokens by position.
    """

    tokens: tuple[int, ...]
    bounds: tuple[int, ...]
    others: bool


def reads(last: Op, outputs: list[Op]) -> Reads:
    """What is read of the last block's result; what the model returns as it is, is read whole."""
    queue, found, bounds, others = [last], set[int](), set[int](), False
    while queue:
        op = queue.pop()
        others = others or op in outputs
        for user in op.users:
            index: Any = user.node.args[1] if user.name == "getitem" else None
            cut = index[1] if isinstance(index, tuple) and len(index) > 1 else None
            if is_norm(user) or user.name in PASSES | PRODUCTS | {"Dropout"}:
                queue.append(user)
            elif type(cut) is int:
                found.add(cut)
            else:
                others = True
                pair = (cut.start, cut.stop) if isinstance(cut, slice) else ()
                bounds.update(b for b in pair if type(b) is int and b > 0)
    bounds.update(token + 1 for token in found if token >= 0)
    return Reads(tuple(sorted(found)), tuple(sorted(bounds)), others or not found)


def pooling(last: Op) -> dict[str, Any]:
    """How tokens of the last block's result, normalised or not, are pooled, by fact of the stream.

    By their mean, by their largest, or by an attention, whose layers read them.
    """
    found, readers, peaks = list[Mean](), list[Mean](), False
    queue: list[tuple[Op, tuple[tuple[int | None, int | None], ...]]] = [(last, ())]
    while queue:
        op, pieces = queue.pop()
        for user in op.users:
            if is_norm(user) or user.name in PASSES | PRODUCTS | {"Dropout"}:
                queue.append((user, pieces))
            elif user.name == "mean" and _axis(user) in (1, (1,), [1], -2):
                found.append(Mean(place(user), pieces))
            elif user.name in ("amax", "max") and _axis(user) in (1, (1,), [1], -2):
                peaks = True
            elif matrix(user) is not None:
                readers.append(Mean(place(user), pieces))
            elif piece := _piece(user):
                queue.append((user, (*pieces, piece)))
    return {"means": tuple(found), "readers": tuple(readers), "peaks": peaks}


def _axis(op: Op) -> Any:
    return op.node.args[1] if len(op.node.args) > 1 else op.node.kwargs.get("dim")


def _piece(op: Op) -> tuple[int | None, int | None] | None:
    """The range of tokens, if that is all that is taken of a sequence."""
    index: Any = op.node.args[1] if op.name == "getitem" else None
    if not isinstance(index, tuple) or not all(isinstance(part, slice) for part in index):
        return None
    cut, others = index[1], (*index[:1], *index[2:])
    whole = all(part == slice(None) for part in others) and cut.step is None
    known = all(bound is None or type(bound) is int for bound in (cut.start, cut.stop))
    return (cut.start, cut.stop) if whole and known else None


def _entry(group: BlockGroup) -> Op:
    """The stream as the block gets it: in its own layout, not as it was made."""
    frame, point = group.frame, group.first.point
    for _, value in [] if frame is None else frame.inputs():
        if strip(value) is point:
            return value
    stream = group.first.stream
    return stream if strip(stream) is point else point


def _patches(flow: Flow, entry: Op, count: int) -> Op | None:
    """The last map of `count` positions that a convolution makes before the first block."""
    for op in reversed(list(flow.members(entry.before))):
        if is_conv(op) and len(op.shape) == 4 and op.shape[2] * op.shape[3] == count:
            return op
    return None


def with_maps(blocks: tuple[Block, ...], flow: Flow, groups: list[BlockGroup]) -> tuple[Block, ...]:
    """The blocks; those of later stages on a sequence with the map that their tokens come from."""
    maps: dict[int, Place | None] = {0: None}
    for block, group in zip(blocks, groups, strict=True):
        if block.stage not in maps:
            found = _patches(flow, group.first.point, tokens_of(group.last.sum, block.dim))
            maps[block.stage] = None if found is None else place(found)
    return tuple(replace(block, map=maps[block.stage]) for block in blocks)


def late_tokens(flow: Flow, groups: list[BlockGroup], sets: Sets) -> list[tuple[str, int]]:
    """Parameters that join the tokens behind the first block, each with the block they enter."""
    start = groups[0].first.sum
    found: dict[str, int] = {}
    for op in flow.members(start.after):
        if op.name not in JOINS or len(op.shape) < 3:
            continue
        for source in op.inputs:
            token = strip(source)
            if token.name == "get_attr" and len(source.shape) == len(op.shape):
                later = [i for i, g in enumerate(groups) if g.first.sum.bit & op.after]
                if later:
                    found.setdefault(token.path, later[0])
    return list(found.items())


def final_norms(flow: Flow, trunk: Trunk, taken: set[Op]) -> list[str]:
    """Norms that read the result of the last block; several if there are several streams."""
    sums = union(r.sum for g in trunk.groups for r in g.sums)
    outputs = 0
    for output in flow.outputs:
        outputs |= output.before
    behind = [
        op
        for op in flow.members(outputs)
        if is_norm(op) and op.before & sums and not op.after & sums and op not in taken
    ]
    # Norms of one pooled token beside those of a whole stream belong to something else.
    if any(math.prod(o.shape[1:-1]) > 1 for o in behind):
        behind = [o for o in behind if math.prod(o.shape[1:-1]) > 1]
    return [norm_path(o) for o in behind if not any(o.before & p.bit for p in behind if p is not o)]


def heads(flow: Flow, sums: int) -> tuple[Classifier, ...]:
    """The layers that make the outputs, each once."""
    found: dict[Op, None] = {}
    queue = list(flow.outputs)
    seen = set(queue)
    while queue:
        op = queue.pop()
        if op.bit & sums:
            continue
        if matrix(op) is not None:
            found[op] = None
        elif is_transparent(op) or op.name in _HEAD_PATH:
            fresh = [i for i in op.inputs if i not in seen]
            seen.update(fresh)
            queue += fresh
    firsts = {matrix(op): op for op in sorted(found, key=lambda o: -o.index)}
    ordered = sorted(firsts.values(), key=lambda o: o.index)
    if len(ordered) == 1:
        return (_head("head", ordered[0]),)
    return tuple(_head(f"head[{i}]", op) for i, op in enumerate(ordered))


def _head(role: str, op: Op) -> Classifier:
    return Classifier(**vars(site(role, op)))
