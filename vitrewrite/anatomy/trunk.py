"""The residual trunk: sums of a stream and a branch, grouped into blocks.

A sum is residual if the stream (seen through views) is something its branch was computed from.
Where a block changes width or length the stream goes through layers of its own; such a sum is
residual if all flow from input to output passes it, that is if it is on the dominator chain.

Sums of one block are told from sums over several by what is inside of them: a region with another
residual sum in it is a skip connection. A block is a sum, mostly with an attention in its region,
and the sum behind it if that has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .attention import Core
from .flow import Flow, FlowFrame, Op, union
from .kinds import (
    ADDS,
    FUSED_ATTENTION,
    PRODUCTS,
    is_conv,
    is_depthwise,
    is_norm,
    is_transparent,
    matrix,
    strip,
)


@dataclass(eq=False)
class Residual:
    """`sum = stream + branch`.

    Attributes:
        point: the op of the stream that the branch starts from.
        region: the ops that depend on `point` and that `sum` depends on, without `point`.
    """

    sum: Op
    stream: Op
    branch: Op
    point: Op
    region: int


@dataclass(eq=False)
class BlockGroup:
    """The sums of one block, in order, and its attention."""

    sums: list[Residual]
    cores: list[Core]
    frame: FlowFrame | None = None

    @property
    def first(self) -> Residual:
        """The first sum."""
        return self.sums[0]

    @property
    def last(self) -> Residual:
        """The last sum, whose result is the block's output."""
        return self.sums[-1]


@dataclass
class Trunk:
    """The blocks of a model, and the sums that belong to none.

    Attributes:
        sums: set of the results of all residual sums, as bits.
        pooled: sums whose stream is itself the result of an attention: pooling heads.
        skips: sums over several blocks.
    """

    groups: list[BlockGroup]
    sums: int = 0
    pooled: list[Residual] = field(default_factory=list)
    skips: list[Residual] = field(default_factory=list)


class Sets:
    """Sets of ops, as bits, that the search asks for again and again."""

    def __init__(self, flow: Flow, cores: Sequence[Core]) -> None:
        self.images = union(flow.images)
        self.linears = union(o for o in flow.ops if matrix(o) is not None)
        dense = (o for o in flow.ops if is_conv(o) and not is_depthwise(o))
        fused = (o for o in flow.ops if o.name == FUSED_ATTENTION)
        inserted = union(c.op for c in cores if c.form == "inserted")
        self.mixing = self.linears | union(dense) | union(fused) | inserted
        self.cores = union(c.op for c in cores)
        values = {layer_of(c.value) for c in cores}
        compared = {layer_of(o) for c in cores for o in (c.query, c.key)}
        # Layers that make queries or keys of what no values are made of: positions are in it.
        self.placed = union(o for o in compared - values if o is not None) | inserted


def find_trunk(
    flow: Flow, cores: Sequence[Core], sets: Sets, residuals: Sequence[Residual], within: int = ~0
) -> Trunk:
    """All blocks in order of execution.

    Args:
        flow: the whole model.
        cores: its attentions.
        sets: of its ops.
        residuals: its residual sums.
        within: set of the sums that may belong to blocks.
    """
    sums = union(r.sum for r in residuals)
    trunk = Trunk([], sums)
    kept = []
    for residual in residuals:
        if not residual.sum.bit & within:
            continue
        if residual.region & sums & ~residual.sum.bit:
            trunk.skips.append(residual)
        elif _is_pooled(residual.point, sums, sets):
            trunk.pooled.append(residual)
        else:
            kept.append(residual)
    trunk.groups = _grouped(kept, cores, sets)
    _find_units(trunk.groups, flow, sets)
    return trunk


def residual_sums(flow: Flow, sets: Sets) -> list[Residual]:
    """The sums whose branch has weights that mix channels; others only encode position."""
    chain = dominators(flow)
    found: dict[Op, Residual] = {}
    for op in flow.ops:
        if op.name not in ADDS or len(op.inputs) != 2 or not op.before & sets.images:
            continue
        a, b = op.inputs
        if a.shape != b.shape or len(a.shape) < 3:
            continue
        if _is_placed(op, sets):
            continue
        residual = _residual(op) or _parallel(op, found) or _projected(op, chain, sets)
        if residual is not None and residual.region & sets.mixing:
            found[op] = residual
    # Positions that are added in front of every layer are no stream, whatever depends on them.
    sums = union(found)
    return [
        r
        for r in found.values()
        if r.point.before & sets.images or not r.region & sums & ~r.sum.bit
    ]


def layer_of(operand: Op) -> Op | None:
    """The linear layer that an operand of an attention is a view, or a multiple, of."""
    while matrix(operand) is None:
        if not (is_transparent(operand) or operand.name in PRODUCTS) or not operand.inputs:
            return None
        operand = operand.inputs[0]
    return operand


def _is_placed(op: Op, sets: Sets) -> bool:
    """Whether a sum is read by layers that compare queries with keys, and by nobody else."""
    readers, queue = 0, [op]
    while queue:
        for user in queue.pop().users:
            if is_transparent(user):
                queue.append(user)
            elif not user.bit & sets.placed:
                return False
            else:
                readers += 1
    return readers > 0


def _residual(op: Op) -> Residual | None:
    """The usual one: of two addends, the branch is the one that was computed from the other."""
    a, b = op.inputs
    for stream, branch in ((a, b), (b, a)):
        point = strip(stream)
        if point is not branch and branch.before & point.bit:
            return Residual(op, stream, branch, point, op.before & point.after & ~point.bit)
    return None


def _parallel(op: Op, found: dict[Op, Residual]) -> Residual | None:
    """The second sum of `x + f(x) + g(x)`."""
    a, b = op.inputs
    for stream, branch in ((a, b), (b, a)):
        first = found.get(strip(stream))
        if first is None or not branch.before & first.point.bit:
            continue
        region = (branch.before | op.bit) & first.point.after & ~first.point.bit
        if not region & first.sum.bit:
            return Residual(op, stream, branch, first.point, region)
    return None


def _projected(op: Op, chain: dict[Op, Op], sets: Sets) -> Residual | None:
    """One whose stream has layers of its own: neither addend was computed from the other.

    What both come from is the point that all flow passed last. The branch is the addend with the
    attention; where neither has one, the addend that takes more ops.
    """
    a, b = op.inputs
    if op not in chain:
        return None
    if not a.before & b.before & sets.images:
        return None
    point = chain[op]
    if is_norm(point):  # both the branch and the stream's own layers follow the norm
        point = strip(point.inputs[0])
    region = op.before & point.after & ~point.bit
    stream, branch = (b, a) if a.before & region & sets.cores else (a, b)
    if not branch.before & region & sets.cores and _depth(stream, point) > _depth(branch, point):
        stream, branch = branch, stream
    return Residual(op, stream, branch, point, region)


def _depth(op: Op, point: Op) -> int:
    return (op.before & point.after).bit_count()


def dominators(flow: Flow) -> dict[Op, Op]:
    """The ops that all flow from image to output passes, each with the one before it.

    One pass finds immediate dominators, as ops are in topological order and have no cycles. What is
    made of parameters alone is on no way from the image, and left out.
    """
    immediate: dict[Op, Op | None] = dict.fromkeys(flow.images)
    depth: dict[Op, int] = dict.fromkeys(flow.images, 0)
    for op in flow.ops:
        sources = [i for i in op.inputs if i in depth]
        if not sources:
            continue
        common: Op | None = sources[0]
        for other in sources[1:]:
            common = _common(common, other, immediate, depth)
        immediate[op] = common
        depth[op] = 0 if common is None else depth[common] + 1
    end: Op | None = next((o for o in flow.outputs if o in depth), None)
    for other in flow.outputs:
        if other in depth and end is not None:
            end = _common(end, other, immediate, depth)
    chain = {}
    while end is not None and (previous := immediate[end]) is not None:
        chain[end] = previous
        end = previous
    return chain


def _common(
    a: Op | None, b: Op | None, immediate: dict[Op, Op | None], depth: dict[Op, int]
) -> Op | None:
    while a is not b:
        if a is None or b is None:
            return None
        if depth[a] >= depth[b]:
            a = immediate[a]
        else:
            b = immediate[b]
    return a


def _is_pooled(point: Op, sums: int, sets: Sets) -> bool:
    """Whether a stream comes from an attention with no sum in between."""
    while not point.bit & sums:
        if point.bit & sets.cores:
            return True
        sources = [i for i in point.inputs if i.before & sets.images]
        if len(sources) != 1:
            return False
        point = sources[0]
    return False


def _grouped(residuals: list[Residual], cores: Sequence[Core], sets: Sets) -> list[BlockGroup]:
    groups: list[BlockGroup] = []
    for residual in residuals:
        inside = [c for c in cores if c.op.bit & residual.region]
        if groups and not inside and _continues(groups[-1], residual, sets):
            groups[-1].sums.append(residual)
        else:
            groups.append(BlockGroup([residual], inside))
    return groups


def _continues(group: BlockGroup, residual: Residual, sets: Sets) -> bool:
    """Whether a sum is the feed-forward part of a block that has its token mixing already."""
    if len(group.sums) > 1:  # what follows the feed-forward part is a block by itself
        return False
    if not (residual.point.before | residual.stream.before) & group.last.sum.bit:
        return False
    frame = residual.sum.frame
    same_unit = frame is group.last.sum.frame and frame.parent is not None
    return same_unit or bool(group.cores and residual.region & sets.linears)


def _find_units(groups: list[BlockGroup], flow: Flow, sets: Sets) -> None:
    """Gives each group the smallest unit around it, unless that holds other blocks too.

    A model may write all its blocks into one forward; then they have no unit, and places in that of
    the model.
    """
    seen: dict[FlowFrame, int] = {}
    candidates = []
    for group in groups:
        frame = _around(group, flow, sets)
        candidates.append(frame)
        for outer in frame.lineage():
            seen[outer] = seen.get(outer, 0) + 1
    for group, frame in zip(groups, candidates, strict=True):
        if seen[frame] == 1 and frame.parent is not None:
            group.frame = frame


def _around(group: BlockGroup, flow: Flow, sets: Sets) -> FlowFrame:
    """The smallest unit that holds the sums, attention and layers of a group."""
    around = group.first.sum.frame
    members = [r.sum for r in group.sums] + [c.op for c in group.cores]
    for residual in group.sums:
        members += flow.members(residual.region & sets.linears)
    for op in members:
        if op.frame is not around:
            around = _common_frame(around, op.frame)
    return around


def _common_frame(a: FlowFrame, b: FlowFrame) -> FlowFrame:
    while a is not b:
        if a.depth >= b.depth:
            assert a.parent is not None, "all frames are in the root's"
            a = a.parent
        else:
            assert b.parent is not None, "all frames are in the root's"
            b = b.parent
    return a
