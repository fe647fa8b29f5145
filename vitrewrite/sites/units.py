"""Verbs about the hidden units of a feed-forward part: a gate for each, and taking some out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn

from ..anatomy.sites import Linear, Mlp
from ..editing import wiring
from ..editing.elementwise import between, first_other
from ..editing.narrowing import Remaining, Slices, narrow
from .linear import LinearSite
from .parting import chosen, shape_before
from .replacing import ReplacedSite


@dataclass(frozen=True, eq=False)
class UnitsSite(ReplacedSite):
    """A feed-forward part as so many hidden units, each by itself."""

    mlp: Mlp

    @property
    def fc2(self) -> LinearSite:
        """Its last layer."""
        return LinearSite(self.context, (self._layer(self.mlp.fc2),))

    @property
    def units(self) -> int:
        """How many hidden units its last layer reads."""
        return self.fc2.in_features

    @property
    def axis(self) -> int:
        """The axis of the hidden units: -1, or 1 where 1x1 convolutions make them."""
        return self.fc2.axis

    def unit_macs(self, *, patches_only: bool = False) -> int:
        """MACs that a hidden unit costs in one image: its rows of fc1 and its column of fc2.

        Args:
            patches_only: whether other tokens than patches are left out, as some papers do.
        """
        first = (self._layer(self.mlp.fc1), self.mlp.gate)
        numbers = sum(layer.in_features for layer in first if layer is not None)
        return (numbers + self.fc2.out_features) * self._positions(patches_only)

    def _positions(self, patches_only: bool) -> int:
        """Tokens of one image that it is applied to."""
        shape = shape_before(self, self._layer(self.mlp.fc2).call)
        axis = self.axis % len(shape)
        count = math.prod(n for i, n in enumerate(shape) if i != axis)
        if patches_only and len(shape) == 3:
            stream = self.context.anatomy.stream
            count -= stream.prefix_tokens + stream.suffix_tokens
        return count

    # -- verbs ----------------------------------------------------------------------------------

    def gate(self, module: nn.Module) -> None:
        """`y = fc2(h)` becomes `y = fc2(module(h))`: of all hidden units, behind the activation.

        Args:
            module: stands in front of a layer: `ahead = True`, `changes = (0,)`.

        Raises:
            RewriteError: VR402 if the pass is there already, VR410 if fc2 is not of one module.
        """
        if self._own_call is not None or self._is_narrowed:
            raise self.twice
        self.fc2.before(module)
        put = self.editor.insertions[-1]
        # It goes once all that folds into the layers has: then `keep` may narrow them.
        put.site, put.owners, put.folds = self, (self.path,), False
        if reason := self._unkeepable:
            self.waive("lowers_exactly", reason)

    def keep(self, units: Sequence[int] | int) -> bool:
        """Takes all but some hidden units out: their rows of fc1 and columns of fc2.

        While a model is rewritten, what is left is trained. At lowering the module that stands in
        front of fc2 goes with them.

        Args:
            units: which stay; or how many, those with the largest product of the norms of their
                rows of fc1 and of their column of fc2. At lowering, of none the first stays, and
                its column is zero.

        Returns:
            At lowering, whether it could.

        Raises:
            RewriteError: VR485 for units that are not there or named twice, VR486 if none would
                stay, VR487 if they cannot be told apart in all that is between the layers.
        """
        taken = self._own_call is not None or self._is_narrowed
        if self.context.insertion is None and taken:
            raise self.twice
        if reason := self._unkeepable:
            if self.context.insertion is not None:
                return False
            raise self.clause.error(
                "VR487",
                f"{self.pass_name} at '{self.role}': {reason}, so that no hidden unit can "
                "be taken out by itself",
            )
        slices, silent = list(self._slices()), not units and self.context.insertion is not None
        choice = self._chosen([0] if silent else units, slices)
        if self.context.insertion is not None:
            self.drop()
        if choice.count < self.units:
            self.editor.own(self.editor.where(self._layer(self.mlp.fc2).call).unit)
            for each in slices:
                narrow(self.editor, each, choice)
        if silent:
            nn.init.zeros_(self.editor.root.get_parameter(slices[-1].name))
        return True

    def _chosen(self, units: Sequence[int] | int, slices: Sequence[Slices]) -> Remaining:
        """What stays, checked."""
        parameter = self.editor.root.get_parameter
        matrices = [s for s in slices if s.name.endswith("weight")]
        by = [(parameter(s.name), s) for s in matrices]
        return chosen(self, units, self.units, "hidden units", by)

    def _slices(self) -> Iterator[Slices]:
        """Where the units are in the tensors of the layers."""
        first, last = self._layer(self.mlp.fc1), self._layer(self.mlp.fc2)
        one = torch.arange(self.units, device="cpu")[:, None]
        both = torch.cat([one, one + self.units], dim=1)
        yield from self._rows(first, both if self._is_halved else one)
        if self.mlp.gate is not None and not self._is_halved:
            yield from self._rows(self.mlp.gate, one)
        yield Slices(last.weight, 1, one)

    def _rows(self, layer: Linear, rows: torch.Tensor) -> Iterator[Slices]:
        """The rows of a layer's weight, and of its bias if there is one."""
        yield Slices(layer.weight, 0, rows)
        owner = layer.weight.rpartition(".")[0]
        if self.editor.root.get_submodule(owner)._parameters.get("bias") is not None:
            yield Slices(f"{owner}.bias", 0, rows)

    # -- whether it can be ----------------------------------------------------------------------

    @property
    def _unkeepable(self) -> str:
        """Why no hidden unit can be taken out by itself, or nothing."""
        first, last = self._layer(self.mlp.fc1), self._layer(self.mlp.fc2)
        layers = [s for s in (first, self.mlp.gate, last) if s is not None]
        units = {self.editor.where(s.call).unit for s in layers}
        if len(units) > 1:
            return "its layers are not called in one module"
        if last.rows or last.offset or any(s.offset or s.pieces for s in layers):
            return "its layers are rows of others"
        if first.rows and not self._is_halved:
            return "its first layer makes other values too"
        paths = [s.weight.rpartition(".")[0] for s in layers]
        owners = [self.editor.root.get_submodule(p) for p in dict.fromkeys(paths)]
        shared = any(self.editor.holders(m) > 1 for m in owners)
        if shared or len(wiring.caller(self.editor, units.pop())[1]) > 1:
            return "its layers are part of more than one module, or run several times"
        return self._mixed(layers)

    @property
    def _is_narrowed(self) -> bool:
        """Whether a clause took units out already."""
        return self._layer(self.mlp.fc2).weight in self.editor.narrowed

    @property
    def _is_halved(self) -> bool:
        """Whether one layer makes the values, and what gates them."""
        return (
            self.mlp.gate is not None and self.mlp.gate.weight == self._layer(self.mlp.fc1).weight
        )

    def _mixed(self, layers: Sequence[Linear]) -> str:
        """What is between the layers and mixes hidden units, or nothing."""
        calls = list(dict.fromkeys(self.editor.node(s.call) for s in layers))
        *first, last = calls
        own = self._own_call
        x = last.args[0] if own is None else own.args[0]
        assert isinstance(x, fx.Node)
        nodes = between(first, x)
        unit = self.editor.unit(self.editor.where(layers[0].call).unit)
        inner = [n for n in last.graph.nodes if n in nodes and n not in first]
        if (other := first_other(unit, inner, nodes)) is not None:
            return f"'{other.name}' mixes its hidden units, or has numbers for each of them"
        read = {user for n in nodes for user in n.users} - nodes - {last, own}
        sizes = {n for n in read if n.op == "call_method" and n.target == "size"}
        if other := next(iter(read - sizes), None):
            return f"'{other.name}' reads them too"
        return ""

    @property
    def _own_call(self) -> fx.Node | None:
        """The call of the module of the pass in front of its last layer, if there is one."""
        x = self.editor.node(self._layer(self.mlp.fc2).call).args[0]
        if not isinstance(x, fx.Node) or x.op != "call_module":
            return None
        unit = self.editor.unit(self.editor.where(self._layer(self.mlp.fc2).call).unit)
        module = unit.get_submodule(str(x.target))
        return x if getattr(module, "inserted_by", None) == self.pass_name else None

    def _layer(self, found: Linear | None) -> Linear:
        if found is None:
            raise self.unfit("it lacks one of its two layers")
        return found
