"""Every softmax attention of a model: its core, and the linear layers around it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .flow import Flow, Op
from .kinds import ADDS, MATMULS, SDPA, VIEWS, layer_matrix
from .rows import Unclear, rows_of, trail

# What may stand between the scores and the softmax, and between the softmax and the product
# with the values, besides linear layers over the heads: it changes scores, not their number.
_ON_SCORES = VIEWS | ADDS | {
    "mul", "imul", "div", "truediv", "itruediv", "sub", "isub", "clamp", "masked_fill",
    "masked_fill_", "where", "setitem", "softmax", "Softmax", "exp", "tanh", "relu", "to",
    "type_as", "float", "dropout", "Dropout", "Identity", "linear", "Linear",
}  # fmt: skip


@dataclass(eq=False)
class Core:
    """One attention: the op that yields the attended values, and what it attends with.

    Attributes:
        op: SDPA, the product of the probabilities with the values, or an inserted module.
        scores: the product of queries and keys; the SDPA itself.
        inside: ops between `scores` and `op`, both included.
    """

    op: Op
    form: str
    query: Op
    key: Op
    value: Op
    scores: Op
    inside: int


@dataclass
class Operand:
    """Where `q`, `k` or `v` comes from.

    Attributes:
        linear: the layer, or None if there is not just one.
        span: the rows of it, from the first to the last; None if they are not known.
        ranges: the same as half-open ranges, more than one if they have gaps.
        count: how many rows.
        varies: per axis of the operand whether rows differ along it; empty if not known.
        why: what stands against a site.
    """

    linear: Op | None
    span: tuple[int, int] | None = None
    ranges: tuple[tuple[int, int], ...] = ()
    count: int = 0
    varies: tuple[bool, ...] = ()
    why: str = ""


def cores(flow: Flow) -> list[Core]:
    """Every attention in order of execution."""
    found: dict[Op, Core] = {}
    for op in flow.ops:
        core = None
        if op.name == SDPA:
            core = _fused(op)
        elif op.name in ("softmax", "Softmax"):
            core = _manual(op)
        elif getattr(op.module, "attends", False):
            core = _inserted(op)
        if core is not None:
            found.setdefault(core.op, core)
    return sorted(found.values(), key=lambda c: c.op.index)


def _fused(op: Op) -> Core | None:
    operands = [op.operand(i, n) for i, n in enumerate(("query", "key", "value"))]
    query, key, value = operands
    if query is None or key is None or value is None:
        return None
    return Core(op, "sdpa", query, key, value, op, op.bit)


def _inserted(op: Op) -> Core:
    """A module of a pass that attends with its first three arguments."""
    query, key, value = op.inputs[:3]
    return Core(op, "inserted", query, key, value, op, op.bit)


def _manual(softmax: Op) -> Core | None:
    scores = next(_scores(softmax, 24), None)
    core = _product_with_values(softmax, 24)
    if scores is None or core is None or len(scores.inputs) < 2 or len(core.inputs) < 2:
        return None
    query, key = scores.inputs[-2:]  # of `baddbmm` the first is a bias
    values = [i for i in core.inputs if not i.before & softmax.bit]
    if not values:
        return None
    inside = core.before & scores.after
    return Core(core, "manual", query, key, values[0], scores, inside)


def _numel(op: Op) -> int:
    result = 1
    for length in op.shape:
        result *= length
    return result


def _scores(op: Op, steps: int) -> Iterator[Op]:
    """Products of queries and keys behind the input of a softmax, the nearest path first."""
    for source in op.inputs if steps else ():
        if _numel(source) != _numel(op) and op.name not in ("linear", "Linear"):
            continue  # a bias or a mask, broadcast over the scores
        if source.name in MATMULS:
            yield source
        elif source.name in _ON_SCORES:
            yield from _scores(source, steps - 1)


def _product_with_values(op: Op, steps: int) -> Op | None:
    """The product that the probabilities go into."""
    for user in op.users if steps else ():
        if user.name in MATMULS:
            return user
        if user.name in _ON_SCORES and (found := _product_with_values(user, steps - 1)):
            return found
    return None


class Operands:
    """Finds the linear layers of operands; equal blocks share the work."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], tuple[int, Operand]] = {}

    def of(self, op: Op) -> Operand:
        """The linear layer, and its rows, that an operand of an attention shows."""
        steps = trail(op)
        key = tuple([(o.node, o.name) for o in steps])
        if key not in self._known:
            found = _operand(op)
            position = -1 if found.linear is None else steps.index(found.linear)
            self._known[key] = position, found
        position, found = self._known[key]
        return found if position < 0 else replace(found, linear=steps[position])


def _operand(op: Op) -> Operand:
    try:
        rows = rows_of(op)
    except Unclear as reason:
        return Operand(None, why=str(reason))
    if not rows.axes():
        return Operand(rows.linear, why="their rows could not be followed")
    ranges = rows.ranges()
    span = ranges[0][0], ranges[-1][1]
    return Operand(rows.linear, span, ranges, len(rows.rows()), rows.axes())


def head_count(core: Core, query: Operand) -> int:
    """Number of heads: rows of the queries over the width of one."""
    width = core.query.shape[-2 if over_channels(core, query) else -1] if core.query.shape else 0
    if query.count and width:
        return max(1, query.count // width)
    return core.query.shape[1] if len(core.query.shape) > 3 else 1


def over_channels(core: Core, query: Operand) -> bool:
    """Whether the softmax compares channels: the product contracts an axis of tokens."""
    contracted, kept = _contracted(core)
    return bool(query.varies) and not query.varies[contracted] and query.varies[kept]


def _contracted(core: Core) -> tuple[int, int]:
    """The axis of the queries that is summed over, and the one that stays."""
    equation = core.scores.node.args[0] if core.scores.name == "einsum" else None
    if not isinstance(equation, str) or "->" not in equation:
        return -1, -2
    first, second, result = equation.replace(" ", "").replace("->", ",").split(",")[:3]
    summed = [i for i, c in enumerate(first) if c in second and c not in result]
    kept = [i for i, c in enumerate(first) if c in result and c not in second]
    return (summed or [-1])[0], (kept or [-2])[0]


def projection(core: Core, stops: int) -> Op | None:
    """The first linear layer behind the attended values; `stops` are ops not to cross."""
    queue, seen = [core.op], core.op.bit
    while queue:
        queue.sort(key=lambda o: o.index)
        op = queue.pop(0)
        for user in op.users:
            if seen & user.bit or stops & user.bit or user.name in MATMULS or user.name == SDPA:
                continue
            if layer_matrix(user) is not None:
                return user
            seen |= user.bit
            queue.append(user)
    return None


def attended_tokens(core: Core, query: Operand) -> int:
    """How many keys a query sees; 0 if that is not known."""
    if over_channels(core, query) or not core.key.shape:
        return 0
    if core.form == "sdpa":
        return core.key.shape[-2]
    return core.scores.shape[-1]
