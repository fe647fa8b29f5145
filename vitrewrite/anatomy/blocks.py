"""From groups of residual sums to `Block`s: attention, feed-forward part, norms and layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .attention import (
    Core,
    Operand,
    Operands,
    attended_tokens,
    head_count,
    over_channels,
    projection,
)
from .flow import Flow, Op
from .kinds import (
    PRODUCTS,
    Matrix,
    is_activation,
    is_conv,
    is_depthwise,
    layer_matrix,
    matrix,
    norm_path,
    pointwise,
    strip,
)
from .layout import feeding_norm, following_norm, tokens_of, width_of, window
from .sites import Attention, Block, Linear, Mlp, Place
from .trunk import BlockGroup, Residual, Sets, Trunk


class Notes:
    """Remarks on what could not be told; equal ones on several blocks are folded."""

    def __init__(self) -> None:
        self._roles: dict[str, list[str]] = {}

    def add(self, text: str, role: str = "") -> None:
        """Adds a remark, on a block if `role` is one."""
        self._roles.setdefault(text, []).append(role)

    def lines(self) -> tuple[str, ...]:
        """One line per remark."""
        return tuple(
            f"{', '.join(ranges(r))}: {text}" if any(r) else text for text, r in self._roles.items()
        )


def ranges(roles: Sequence[str]) -> list[str]:
    """Runs of `blocks[i]` written as `blocks[i:j]`; other roles as they are."""
    result: list[str] = []
    start = stop = -1
    for role in [*dict.fromkeys(roles), ""]:
        number = int(role[7:-1]) if role.startswith("blocks[") else -1
        if number != stop or number < 0:
            if stop > start:
                one = stop - start == 1
                result.append(f"blocks[{start}]" if one else f"blocks[{start}:{stop}]")
            start = number
        stop = number + 1 if number >= 0 else -1
        if number < 0 and role:
            result.append(role)
            start = -1
    return result


@dataclass
class Parts:
    """What a block is made of, before roles are written: the op of each layer."""

    names: dict[Op, str] = field(default_factory=dict)  # layer -> "attn.proj"
    norms: list[Op] = field(default_factory=list)


class Assembler:
    """Makes the blocks of one model."""

    def __init__(self, flow: Flow, trunk: Trunk, sets: Sets) -> None:
        self.flow = flow
        self.trunk = trunk
        self.sets = sets
        self.operands = Operands()
        self.notes = Notes()
        self.norms: set[Op] = set()  # those that belong to a block
        self.post_norm = False  # blocks normalise their sums

    def blocks(self) -> tuple[Block, ...]:
        """All blocks; stages are counted where width or length changes."""
        made = []
        seen = 0  # what is before the block at hand: its layers belong to others
        for index, group in enumerate(self.trunk.groups):
            seen |= group.first.point.before
            made.append(self._block(index, group, group.last.sum.before & ~seen))
            seen |= group.last.sum.before
        return self._staged(made)

    def _block(self, index: int, group: BlockGroup, owned: int) -> Block:
        role = f"blocks[{index}]"
        layers = list(self.flow.members(owned & self.sets.linears))
        parts = Parts()
        attn = self._block_attention(role, group, parts)
        mlp = self._mlp(role, group, layers, parts)
        if mlp is None and group.cores:
            convs = [o for o in self.flow.members(owned) if pointwise(o) is not None]
            both = sorted({*layers, *convs}, key=lambda o: o.index)
            mlp = self._mlp(role, group, both, parts) if convs else None
        norm1, norm2 = self._norms(group, parts)
        width = self._width(group, layers)
        last = group.last.sum
        return Block(
            role=role,
            index=index,
            stage=0,
            unit=None if group.frame is None else group.frame.path,
            dim=width_of(last, width),
            input=_input(group),
            mid=place(group.first.sum) if _has_middle(group) else None,
            output=place(last),
            attn=attn,
            mlp=mlp,
            norm1=norm1,
            norm2=norm2,
            linears=_sites(role, layers, parts),
        )

    def _width(self, group: BlockGroup, layers: Sequence[Op]) -> int | None:
        """Channels of the block's result: what its last layer makes."""
        made = [m for o in layers if o.bit & group.last.region and (m := matrix(o))]
        return made[-1].out_features if made else None

    def _staged(self, blocks: list[Block]) -> tuple[Block, ...]:
        keys: list[tuple[int, int]] = []
        for block, group in zip(blocks, self.trunk.groups, strict=True):
            key = (block.dim, tokens_of(group.last.sum, block.dim))
            if not keys or keys[-1] != key:
                keys.append(key)
        if len(set(keys)) < len(keys):
            self.notes.add("blocks of several streams alternate, so there are no stages")
            return tuple(blocks)
        stages = {key: i for i, key in enumerate(keys)}
        return tuple(
            replace(b, stage=stages[b.dim, tokens_of(g.last.sum, b.dim)])
            for b, g in zip(blocks, self.trunk.groups, strict=True)
        )

    # Attention

    def _block_attention(self, role: str, group: BlockGroup, parts: Parts) -> Attention | None:
        if not group.cores:
            return None
        core = group.cores[0]
        if len(group.cores) > 1:
            self.notes.add(f"attn is the first of {len(group.cores)} attentions", role)
        attn = self.attention(f"{role}.attn", core, parts)
        query = self.operands.of(core.query)
        width = layer_matrix(query.linear) if query.linear is not None else None
        seen = attended_tokens(core, query)
        found, grouped = window(core, group.first.point, width and width.in_features, seen)
        if grouped and found is None:
            self.notes.add(f"attends in groups of {seen} tokens of unknown shape", role)
        return replace(attn, windows=found)

    def attention(self, role: str, core: Core, parts: Parts) -> Attention:
        """The attention of a core; notes which layer is which in `parts`."""
        q, k, v = (self.operands.of(o) for o in (core.query, core.key, core.value))
        proj = projection(core, self.trunk.sums)
        kind = role.rpartition(".")[2]
        fused = q.linear if q.linear is k.linear is v.linear else None
        if q.linear is not None and fused is not None:
            parts.names[q.linear] = f"{kind}.qkv"
        elif k.linear is not None and k.linear is v.linear:
            parts.names[k.linear] = f"{kind}.kv"
        unclear: dict[str, list[str]] = {}
        for name, found in (("q", q), ("k", k), ("v", v)):
            if found.linear is not None:
                parts.names.setdefault(found.linear, f"{kind}.{name}")
            if found.why:
                unclear.setdefault(found.why, []).append(name)
        for why, names in unclear.items():
            self.notes.add(f"no sites {', '.join(names)}: {why}", role.rpartition(".")[0] or role)
        if proj is not None:
            parts.names.setdefault(proj, f"{kind}.proj")
        return Attention(
            role=role,
            core=place(core.op),
            form=core.form,
            heads=head_count(core, q),
            q=_rows_site(f"{role}.q", q),
            k=_rows_site(f"{role}.k", k),
            v=_rows_site(f"{role}.v", v),
            qkv=None if fused is None else _fused(f"{role}.qkv", fused, (q, k, v)),
            proj=None if proj is None else site(f"{role}.proj", proj),
            over="channels" if over_channels(core, q) else "tokens",
        )

    # Feed-forward

    def _mlp(self, role: str, group: BlockGroup, layers: Sequence[Op], parts: Parts) -> Mlp | None:
        residual = group.last
        mine = [o for o in layers if o.bit & residual.region and o.bit & residual.branch.before]
        if len(group.sums) == 1:
            for core in group.cores:  # beside the attention, not before or behind it
                mine = [o for o in mine if not o.bit & (core.op.before | core.op.after)]
        second = mine[-1] if mine else None
        first = _feeders(mine)
        if second is None:
            return None
        if not first:
            return self._fused_mlp(role, group, second, parts)
        between = self._between(first, second)
        if any(is_conv(o) and not is_depthwise(o) for o in self.flow.members(between)):
            return None  # it mixes positions, or channels once more
        acts = [o for o in self.flow.members(between) if is_activation(o)]
        if not acts:
            return None
        act = _whole(acts[-1])
        fc1, gate = self._gate(f"{role}.mlp", first, act, between)
        parts.names[fc1] = "mlp.fc1"
        parts.names[second] = "mlp.fc2"
        if gate is not None and gate.rows is None:
            parts.names[next(o for o in first if o is not fc1)] = "mlp.gate"
        return Mlp(
            role=f"{role}.mlp",
            fc1=site(f"{role}.mlp.fc1", fc1),
            act=place(act),
            fc2=site(f"{role}.mlp.fc2", second),
            gate=gate,
        )

    def _fused_mlp(self, role: str, group: BlockGroup, second: Op, parts: Parts) -> Mlp | None:
        """The feed-forward part whose first layer is rows of one that makes q, k and v too."""
        found = self.operands.of(second.inputs[0])
        if found.linear is None or found.linear not in parts.names or not group.cores:
            return None
        between = found.linear.after & second.before & ~group.cores[0].op.before
        acts = [o for o in self.flow.members(between) if is_activation(o)]
        fc1 = _rows_site(f"{role}.mlp.fc1", found)
        if not acts or fc1 is None or fc1.rows is None:
            return None
        parts.names[second] = "mlp.fc2"
        fc2 = site(f"{role}.mlp.fc2", second)
        return Mlp(role=f"{role}.mlp", fc1=fc1, act=place(_whole(acts[-1])), fc2=fc2)

    def _between(self, first: Sequence[Op], second: Op) -> int:
        bits = 0
        for op in first:
            bits |= op.after & second.before & ~op.bit
        return bits & ~second.bit

    def _gate(
        self, role: str, first: Sequence[Op], act: Op, between: int
    ) -> tuple[Op, Linear | None]:
        """The layer of the values, and the one whose activation multiplies them."""
        if len(first) == 2:
            gated = [o for o in first if o.bit & act.before]
            if len(gated) == 1:
                value = first[1] if gated[0] is first[0] else first[0]
                return value, site(f"{role}.gate", gated[0])
        for op in self.flow.members(between):
            if op.name in PRODUCTS and len(op.inputs) == 2:
                for gate, value in (op.inputs, op.inputs[::-1]):
                    halves = self.operands.of(gate), self.operands.of(value)
                    if gate.before & act.bit and _disjoint(*halves):
                        return first[0], _rows_site(f"{role}.gate", halves[0])
        return first[0], None

    # Norms

    def _norms(self, group: BlockGroup, parts: Parts) -> tuple[str | None, str | None]:
        layers = {name: op for op, name in parts.names.items()}
        reads = [layers.get(n) for n in ("attn.qkv", "attn.q", "attn.k", "attn.kv")]
        attn = next((o for o in reads if o is not None), None)
        if attn is None and group.cores:
            attn = group.cores[0].query
        fc1, fc2 = layers.get("mlp.fc1"), layers.get("mlp.fc2")
        if group.cores or len(group.sums) > 1:
            norm1 = self._norm(group.first, attn, layers.get("attn.proj"))
            norm2 = self._norm(group.last, fc1, fc2) if len(group.sums) > 1 else None
            return norm1, None if norm2 == norm1 else norm2
        return self._norm(group.first, fc1, fc2), None

    def _norm(self, residual: Residual, first: Op | None, last: Op | None) -> str | None:
        """The norm in front of a branch, or the one behind it, or the one behind the sum."""
        found = None
        if first is not None:  # XCiT's is on the stream, for the class token only
            found = feeding_norm(first, residual.sum.before)
            found = None if found is residual.point else found
        else:
            found = following_norm(residual.point, residual.region)
        if found is None and last is not None:
            found = following_norm(last, residual.region)
        if found is None:
            after = following_norm(residual.sum, residual.sum.after)
            starts = [r.point for g in self.trunk.groups for r in g.sums]
            self.post_norm = self.post_norm or after in starts
            found = after if self.post_norm else None
        if found is None:
            return None
        self.norms.add(found)
        return norm_path(found)


def _has_middle(group: BlockGroup) -> bool:
    """Whether the feed-forward part reads the result of the attention, not its input."""
    return bool(group.last.point.before & group.first.sum.bit)


def place(op: Op) -> Place:
    """Where an op is."""
    return Place(op.frame.path, op.node.name)


def site(role: str, op: Op, rows: tuple[int, int] | None = None) -> Linear:
    """A linear site: all of a layer, or rows of it."""
    weight = layer_matrix(op)
    assert weight is not None, "only linear ops become sites"
    return _linear(role, op, weight, rows)


def _linear(role: str, op: Op, weight: Matrix, rows: tuple[int, int] | None) -> Linear:
    first, last = rows or (0, weight.out_features)
    offset = 0 if weight.rows is None else weight.rows[0]
    if weight.rows is not None:
        rows = (first + offset, last + offset)
    axis = -1 if matrix(op) is not None else 1
    count = last - first
    return Linear(role, place(op), weight.path, weight.in_features, count, rows, offset, axis=axis)


def _fused(role: str, layer: Op, parts: Sequence[Operand]) -> Linear:
    """All of a layer of q, k and v, or their rows if it makes more than these."""
    rows = sorted(r for part in parts for r in part.ranges)
    weight = layer_matrix(layer)
    assert weight is not None
    ends = [0, *(stop for _, stop in rows)]
    touching = [start == end for (start, _), end in zip(rows[1:], ends[2:], strict=False)]
    if not rows or not all(touching) or (rows[0][0], ends[-1]) == (0, weight.out_features):
        return site(role, layer)
    return site(role, layer, (rows[0][0], ends[-1]))


def _rows_site(role: str, found: Operand) -> Linear | None:
    if found.linear is None or found.span is None:
        return None
    weight = layer_matrix(found.linear)
    assert weight is not None, "operands come from linear ops"
    whole = found.ranges == ((0, weight.out_features),)
    made = _linear(role, found.linear, weight, None if whole else found.span)
    if len(found.ranges) < 2:
        return made
    pieces = tuple((a + made.offset, b + made.offset) for a, b in found.ranges)
    return replace(made, out_features=found.count, pieces=pieces)


def _sites(role: str, layers: Sequence[Op], parts: Parts) -> tuple[Linear, ...]:
    """The layers of a block, each once; those without a part are numbered."""
    sites: dict[Any, Linear] = {}
    for number, op in enumerate(layers):
        name = parts.names.get(op, f"linear[{number}]")
        made = site(f"{role}.{name}", op)
        sites.setdefault((made.weight, made.rows), made)
    return tuple(sites.values())


def _whole(act: Op) -> Op:
    """The product `x * sigmoid(x)` for a sigmoid that is part of one."""
    for user in act.users:
        if user.name in PRODUCTS and all(i is act or i.bit & act.before for i in user.inputs):
            return user
    return act


def _feeders(layers: Sequence[Op]) -> list[Op]:
    """The layers that the last one reads, with no other in between."""
    before = [o for o in layers[:-1] if o.bit & layers[-1].before]
    return [o for o in before if not any(o.bit & p.before for p in before if p is not o)]


def _disjoint(a: Operand, b: Operand) -> bool:
    if a.linear is None or a.linear is not b.linear or a.span is None or b.span is None:
        return False
    pairs = ((p, q) for p in a.ranges for q in b.ranges)
    return all(p[1] <= q[0] or q[1] <= p[0] for p, q in pairs)


def _input(group: BlockGroup) -> Place:
    """The value a block starts from, as its own unit sees it."""
    frame, point = group.frame, group.first.point
    if frame is None:
        return place(group.first.stream if strip(group.first.stream) is point else point)
    inputs = frame.inputs()
    for node, value in inputs:
        if strip(value) is point:
            return Place(frame.path, node.name)
    streams = [n for n, v in inputs if v.bit & group.last.sum.before and len(v.shape) > 2]
    return Place(frame.path, streams[0].name) if streams else place(point)
