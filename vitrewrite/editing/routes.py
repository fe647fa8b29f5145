"""A part of a block that some tokens pass and others skip: what it is made of."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..anatomy.sites import Place
from ..tracing.notes import VALUE
from ..tracing.unit import Unit
from . import wiring
from .editor import Editor, join
from .passing import goes_by_place
from .slices import behind


@dataclass(frozen=True)
class Stretch:
    """All that lies between a stream x and what is made of it, in the graph of one unit.

    Attributes:
        unit: its path.
        x: the stream.
        gates: one number for each token, and what else is made with it.
        gated: the call that multiplies the gate with what is made of x, its first argument.
        core: the call of the attention in it, or None without one.
    """

    editor: Editor
    unit: str
    x: fx.Node
    gates: tuple[fx.Node, ...]
    gated: fx.Node
    core: Place | None = None

    @property
    def y(self) -> fx.Node:
        """What is made of x."""
        node = self.gated.args[0]
        assert isinstance(node, fx.Node)
        return node

    @property
    def nodes(self) -> list[fx.Node]:
        """What y is made by, of x; the gates are not part of it."""
        made = behind((self.x, *self.gates)) - {self.x, *self.gates}
        queue, found = [self.y], {self.y}
        while queue:
            fresh = {n for n in queue.pop().all_input_nodes if n in made} - found
            found |= fresh
            queue += fresh
        return [n for n in self.x.graph.nodes if n in found and n in made]

    def enter(self, rows: fx.Node, valid: fx.Node | None) -> None:
        """What y is made of is some rows of x from here on, and their gates."""
        for node in self.nodes:
            node.replace_input_with(self.x, rows)
            for gate in self.gates:
                if valid is not None:
                    node.replace_input_with(gate, valid)

    @property
    def obstacle(self) -> str:
        """Why rows of x cannot pass by themselves, in words; empty if they can."""
        inside = self.nodes
        known = {*inside, self.x, *self.gates}
        if any(user not in known and user is not self.gated for n in inside for user in n.users):
            return "another part reads what it makes of all tokens"
        given = {n for node in inside for n in node.all_input_nodes} - known
        if any(depends_on_image(self.editor, self.unit, n) for n in given):
            return "it is given other values that are made of the image"
        for path, node in self._below(self.unit, inside):
            if why := self._mixes(path, node):
                return why
        return self._biased if self.core is not None else ""

    def _below(self, unit: str, nodes: Collection[fx.Node]) -> Iterator[tuple[str, fx.Node]]:
        """The nodes, and those of the units that they call, but for the attention's."""
        for node in nodes:
            yield unit, node
            if node.op != "call_module":
                continue
            path = join(unit, str(node.target))
            child = self.editor.root.get_submodule(path)
            if self.core is not None and f"{self.core.unit}.".startswith(f"{path}."):
                continue
            if isinstance(child, Unit) and child.template is not None:
                made = [n for n in child.template.graph.nodes if n.op not in _ENDS]
                yield from self._below(path, made)

    def _mixes(self, unit: str, node: fx.Node) -> str:
        """Why a node makes no row of each row, as far as that can be seen."""
        module = None
        if node.op == "call_module":
            module = self.editor.root.get_submodule(join(unit, str(node.target)))
        if isinstance(module, _MIXING):
            return f"'{join(unit, str(node.target))}' mixes tokens"
        if module is not None and goes_by_place(module):
            return f"'{join(unit, str(node.target))}' goes by where tokens stand"
        value, whole = VALUE.get(node), VALUE.get(self.x)
        if not (isinstance(value, torch.Tensor) and isinstance(whole, torch.Tensor)):
            return ""
        if self.core is not None or node.op == "get_attr" or value.dim() < 3:
            return ""
        return "" if value.shape[:2] == whole.shape[:2] else f"'{unit}' rearranges its tokens"

    @property
    def _biased(self) -> str:
        """Why an attention tells its tokens by where they stand."""
        assert self.core is not None
        place = self.editor.where(self.core)
        core = self.editor.node(place)
        if core.target is not F.scaled_dot_product_attention:
            return "its attention is written out"
        mask = core.args[3] if len(core.args) > 3 else core.kwargs.get("attn_mask")
        queue: list[fx.Node] = [mask] if isinstance(mask, fx.Node) else []
        while queue:
            node = queue.pop()
            queue += node.all_input_nodes
            if node.op == "get_attr" and node.target != "training":
                return "its scores have a bias by position"
            if node.op == "call_module":
                return "its scores have a bias of their own"
            if node.op == "placeholder" and not self._is_gate(place.unit, node):
                return "its scores have another bias by token"
        return ""

    def _is_gate(self, unit: str, node: fx.Node) -> bool:
        """Whether an input of a unit is one of the gates."""
        while unit != self.unit:
            if node.op != "placeholder":
                return False
            above, calls = wiring.caller(self.editor, unit)
            inputs = [n for n in node.graph.nodes if n.op == "placeholder"]
            given = calls[0].args[inputs.index(node)]
            if not isinstance(given, fx.Node):
                return False
            unit, node = above, given
        return node in self.gates


_ENDS = ("placeholder", "output")
_MIXING = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.modules.batchnorm._BatchNorm, nn.GroupNorm,
    nn.MultiheadAttention,
)  # fmt: skip


def depends_on_image(editor: Editor, unit: str, node: fx.Node) -> bool:
    """Whether a value is made of an input of the model."""
    queue, seen = [(unit, node)], {(unit, node)}
    while queue:
        unit, node = queue.pop()
        made = [(unit, n) for n in node.all_input_nodes]
        if node.op == "placeholder":
            if not unit:
                return True
            above, calls = wiring.caller(editor, unit)
            index = [n for n in node.graph.nodes if n.op == "placeholder"].index(node)
            given = [call.args[index] for call in calls if len(call.args) > index]
            made = [(above, g) for g in given if isinstance(g, fx.Node)]
        queue += [each for each in made if each not in seen]
        seen.update(made)
    return False
