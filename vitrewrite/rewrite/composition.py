"""What each block of a model is made of after a rewrite, read off its graphs and not off clauses.

A residual sum tells its branch, and what the branch computes tells what it is: an attention with so
many heads, a convolution of some size, an MLP of some width, or nothing where the sum is gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..anatomy import analyse
from ..anatomy.flow import Flow, Op, flatten
from ..anatomy.kinds import ADDS, FUSED_ATTENTION, SDPA, is_conv, layer_matrix
from ..anatomy.sites import Anatomy, Block, Place
from ..editing.editor import Editor
from ..editing.measure import Propagation
from .patches import by_weight, widths

ATTENTION, SKIP, DROPPED, OTHER = "attention", "skip", "dropped", "other"
"""What may mix the tokens of a block, besides convolutions such as `3x3`."""

_ATTENDS = (SDPA, FUSED_ATTENTION, "softmax", "Softmax")


@dataclass(frozen=True)
class Composition:
    """A block as it is, beside the block that it was.

    Attributes:
        block: as it was.
        mixing: what mixes its tokens.
        heads: of its attention; None where it has none.
        hidden: units of its MLP; None where it has none.
        hidden_before: the same of the block that it was.
    """

    block: Block
    mixing: str
    heads: int | None
    hidden: int | None
    hidden_before: int | None

    @property
    def heads_before(self) -> int | None:
        """Heads of the block that it was."""
        return self.block.attn.heads if self.block.attn else None

    def to_json(self) -> dict[str, Any]:
        """It as data."""
        return {
            "block": self.block.index, "stage": self.block.stage, "mixing": self.mixing,
            "heads": self.heads, "heads_before": self.heads_before,
            "hidden": self.hidden, "hidden_before": self.hidden_before,
        }  # fmt: skip


def composition(
    original: nn.Module, anatomy: Anatomy, editor: Editor, run: Propagation, base: Propagation
) -> list[Composition]:
    """The blocks of a rewritten tree, those that are gone included.

    Args:
        original: the model as it was, whose places are what passes moved.
        anatomy: the places that clauses were told of, with the blocks that are gone.
        editor: of the tree as it is.
        run: of that tree, on meta.
        base: of the model as it was.
    """
    blocks = {block.index: block for block in analyse(original).blocks}
    absent = {block.index for block, _ in anatomy.gone.values()} & blocks.keys()
    gone = [Composition(blocks[i], DROPPED, None, None, _before(blocks[i])) for i in absent]
    flow = flatten(editor.root)
    try:
        reader = _BlockReader(flow, editor, run, base)
        found = [*gone, *(reader.read(b) for i, b in blocks.items() if i not in absent)]
    finally:
        flow.release()
    return sorted(found, key=lambda each: each.block.index)


def _before(block: Block) -> int | None:
    fc2 = block.mlp.fc2 if block.mlp else None
    return None if fc2 is None else fc2.in_features


class _BlockReader:
    """Reads blocks off the dataflow of a tree."""

    def __init__(self, flow: Flow, editor: Editor, run: Propagation, base: Propagation) -> None:
        self.flow, self.editor, self.run, self.base = flow, editor, run, base
        self.ops = {Place(op.frame.path, op.node.name): op for op in flow.ops}
        self.layers = by_weight(flow)

    def read(self, block: Block) -> Composition:
        """A block as it is."""
        last = [b for b in block.branches if b.role.endswith(".mlp_branch")]
        apart = [b for b in block.branches if b not in last]
        mixing = apart or last
        ops = [op for branch in mixing for op in self._branch(branch.sum, branch.index)]
        attends = any(map(_attends, ops))
        kernels = [side for op in ops for side in _kernels(op)]
        other = block.attn is None and any(layer_matrix(op) or op.module for op in ops)
        largest = max(kernels, default=0)
        if attends:
            kind = ATTENTION
        elif largest > 1 or (largest and apart and (block.attn or block.mlp)):
            kind = f"{largest}x{largest}"
        else:
            kind = OTHER if other or _opaque(ops) else SKIP
        return Composition(
            block, kind, self._heads(block, ops) if attends else None, self._hidden(block),
            _before(block),
        )  # fmt: skip

    def _branch(self, place: Place, index: int) -> list[Op]:
        """What a residual sum adds, without what its stream is made of; nothing if it is gone."""
        total = self._sum(place)
        if total is None or index >= len(total.node.args):
            return []
        wanted = total.node.args[index]
        pairs = zip(total.arguments, total.inputs, strict=True)
        branch = next((op for node, op in pairs if node is wanted), None)
        if branch is None:
            return []
        stream = next((op for op in total.inputs if op is not branch), branch)
        return list(self.flow.members(branch.before & ~stream.before))

    def _sum(self, place: Place) -> Op | None:
        """A residual sum: where it is now, not what was made of it since."""
        found = (self.ops.get(at) for at in (self.editor.where(place), place))
        return next((op for op in found if op and op.name in ADDS and len(op.inputs) == 2), None)

    def _heads(self, block: Block, ops: Sequence[Op]) -> int | None:
        """Of its attention, told by the lengths of what that yields."""
        if block.attn is None:
            return next((h for op in ops if (h := getattr(op.module, "heads", None))), None)
        heads, core = block.attn.heads, block.attn.core
        before, now = self.base.shape(core), self.run.shape(self.editor.where(core))
        if now is None:
            own = (getattr(op.module, "heads", None) for op in ops if op.module is not None)
            return next((h for h in own if isinstance(h, int)), heads)
        same = before is not None and len(before) == len(now) > 3 and before[-3] == heads
        return now[-3] if same else heads

    def _hidden(self, block: Block) -> int | None:
        """Units of its MLP, which the last layer of that takes."""
        if block.mlp is None or block.mlp.fc2 is None:
            return None
        calls = self.layers.get(block.mlp.fc2.weight, ())
        if calls:
            return widths(calls[0])[0]
        branch = next((b for b in block.branches if b.role.endswith(".mlp_branch")), None)
        ops = [] if branch is None else self._branch(branch.sum, branch.index)
        layers = [op for op in ops if layer_matrix(op) is not None]
        return widths(layers[-1])[0] if layers else None


def _attends(op: Op) -> bool:
    return op.name in _ATTENDS or bool(getattr(op.module, "attends", False))


def _opaque(ops: Sequence[Op]) -> bool:
    """Whether there is a module of a pass that nothing is known of."""
    return any(op.module is not None and not type(op.module).__module__.startswith("torch.")
               for op in ops)  # fmt: skip


def _kernels(op: Op) -> Iterator[int]:
    """The longer side of each convolution, those in a module of a pass included."""
    if op.module is not None:
        for layer in op.module.modules():
            if isinstance(layer, nn.Conv2d):
                yield max(layer.kernel_size)
    elif is_conv(op):
        weight = op.operand(1, "weight")
        if weight is not None and weight.shape:
            yield max(weight.shape[2:])
