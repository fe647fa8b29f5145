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
from ..anatomy.sites import Anatomy, Block, Branch, Place
from ..editing.editor import Editor
from ..editing.measure import Propagation
from ..editing.slices import ahead
from ..tracing.nodes import nodes_of
from ..tracing.unit import Unit
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
        ops = [op for branch in mixing for op in self._branch(branch)]
        modules = [m for branch in mixing for m in self._called(branch)]
        attends = any(map(_attends, ops)) or any(getattr(m, "attends", False) for m in modules)
        parts: list[Op | nn.Module] = [*ops, *modules]
        kernels = [side for each in parts for side in _kernels(each)]
        other = block.attn is None and any(layer_matrix(op) or op.module for op in ops)
        largest = max(kernels, default=0)
        if attends:
            kind = ATTENTION
        elif largest > 1 or (largest and apart and (block.attn or block.mlp)):
            kind = f"{largest}x{largest}"
        else:
            kind = OTHER if other or any(map(_opaque, modules)) else SKIP
        return Composition(
            block,
            kind,
            self._heads(block, modules) if attends else None,
            self._hidden(block),
            _before(block),
        )

    def _branch(self, branch: Branch) -> list[Op]:
        """What a residual sum adds, without what its stream is made of; nothing if it is gone."""
        total = self._sum(branch.sum)
        if total is None:
            return []
        wanted = total.node.args[branch.index]
        pairs = zip(total.arguments, total.inputs, strict=True)
        added = next((op for node, op in pairs if node is wanted), None)
        if added is None:
            return []
        stream = next((op for op in total.inputs if op is not added), added)
        return list(self.flow.members(added.before & ~stream.before))

    def _called(self, branch: Branch) -> Iterator[nn.Module]:
        """The layers, and modules of passes, that a residual sum adds something of."""
        total = self._sum(branch.sum)
        if total is None:
            return
        added, stream = (total.node.args[i] for i in (branch.index, 1 - branch.index))
        for node in ahead(nodes_of(added)) - ahead(nodes_of(stream)):
            if node.op == "call_module":
                yield from _leaves(total.frame.module.get_submodule(str(node.target)))

    def _sum(self, place: Place) -> Op | None:
        """A residual sum: where it is now, not what was made of it since."""
        found = (self.ops.get(at) for at in (self.editor.where(place), place))
        return next((op for op in found if op and op.name in ADDS and len(op.inputs) == 2), None)

    def _heads(self, block: Block, modules: Sequence[nn.Module]) -> int | None:
        """Of its attention, told by the lengths of what that yields."""
        own = (getattr(module, "heads", None) for module in modules)
        told = next((heads for heads in own if isinstance(heads, int)), None)
        if block.attn is None:
            return told
        heads, core = block.attn.heads, block.attn.core
        before, now = self.base.shape(core), self.run.shape(self.editor.where(core))
        if now is None:
            return told or heads
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
        ops = [] if branch is None else self._branch(branch)
        layers = [op for op in ops if layer_matrix(op) is not None]
        return widths(layers[-1])[0] if layers else None


def _attends(op: Op) -> bool:
    return op.name in _ATTENDS or bool(getattr(op.module, "attends", False))


def _opaque(module: nn.Module) -> bool:
    """Whether it is a module of a pass, of which nothing is known."""
    return not type(module).__module__.startswith("torch.")


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    """What a module calls, down to what has no graph."""
    if not isinstance(module, Unit) or module.template is None:
        yield module
        return
    for node in module.template.graph.nodes:
        if node.op == "call_module":
            yield from _leaves(module.get_submodule(str(node.target)))


def _kernels(each: Op | nn.Module) -> Iterator[int]:
    """The longer side of each convolution, those in a module of a pass included."""
    if isinstance(each, nn.Module):
        for layer in each.modules():
            if isinstance(layer, nn.Conv2d):
                yield max(layer.kernel_size)
    elif each.module is None and is_conv(each):
        weight = each.operand(1, "weight")
        if weight is not None and weight.shape:
            yield max(weight.shape[2:])
