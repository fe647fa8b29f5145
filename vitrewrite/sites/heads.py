"""Verbs about the heads of an attention: a gate for each, and taking some out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn

from ..editing.editor import join
from ..editing.fewer import restate
from ..editing.measure import BrokenError
from ..editing.narrowing import Slices, narrow, take_out_unread, take_over
from ..editing.parts import (
    MixedError,
    PartNumbers,
    last_layer,
    line,
    name_of,
)
from ..tracing.notes import HINT
from ..tracing.template import eliminate_dead_code
from .apart import ApartSite
from .parting import chosen, shape_before


@dataclass(frozen=True, eq=False)
class HeadsSite(ApartSite):
    """An attention as so many heads, each by itself."""

    @property
    def head_macs(self) -> float:
        """MACs of a head in one image: its rows and columns, scores, and what these weigh."""
        found = self.attention
        layers = [self._needed(s) for s in (found.q, found.k, found.v, found.proj)]
        shapes = [shape_before(self, s.call) for s in layers]
        places = [math.prod(shape[:-1]) for shape in shapes]
        matrices = (n * s.in_features * s.out_features for n, s in zip(places, layers, strict=True))
        windows = math.prod(shape_before(self, found.core)[:-3])
        widths = (layers[1].out_features + layers[2].out_features) / self.heads
        return sum(matrices) / self.heads + places[0] * places[1] / windows * widths

    # -- verbs ----------------------------------------------------------------------------------

    def gate(self, module: nn.Module) -> None:
        """`y = proj(o)` becomes `y = proj(module(o))`: of what all heads yield, side by side.

        Args:
            module: stands in front of a layer: `ahead = True`, `changes = (0,)`.

        Raises:
            RewriteError: VR402 if the pass is there already, VR488 if heads do not lie side by side
                in what `proj` reads, or share their keys.
        """
        if self._own_call is not None or self._is_narrowed:
            raise self.twice
        self._expect_apart()
        self.proj.before(module)
        put = self.editor.insertions[-1]
        # It goes once all that folds into the layers has: then `keep_heads` may narrow them.
        put.site, put.owners, put.folds = self, (self.path,), False
        # Once all clauses are through, and what they left for the end.
        self.at_end(lambda: self.at_end(self._expect_to_go))

    def _expect_to_go(self) -> None:
        """Waives the exact lowering if heads cannot be taken out for what else is there."""
        try:
            self._parts(ended=True)
        except (MixedError, BrokenError) as why:
            self.waive("lowers_exactly", f"heads cannot be taken out: {why}")

    def keep_heads(self, heads: Sequence[int] | int) -> bool:
        """Takes all but some heads out.

        Their rows of the layers of q, k and v, their columns of `proj`, and what else the module
        has for each, such as biases of scores by position; norms of queries and keys stay. While a
        model is rewritten, what is left is trained. At lowering the module that stands in front of
        `proj` goes with them.

        Args:
            heads: which stay; or how many, those with the largest product of the norms of their
                rows of v and of their columns of `proj`.

        Returns:
            At lowering, whether it could.

        Raises:
            RewriteError: VR485 for heads that are not there or named twice, VR486 if none would
                stay, VR488 if they share keys or cannot be told apart in all that it computes.
        """
        lowering = self.context.insertion is not None
        if not lowering and (self._own_call is not None or self._is_narrowed):
            raise self.twice
        choice = chosen(self, heads, self.heads, "heads", self._weighing)
        if choice.count == self.heads:
            self._drop_own()
            return True
        try:
            parts = self._parts()
            restate(parts, choice.count, only_check=True)
            slices = list(self._slices(parts))
        except MixedError as why:
            if lowering:
                return False
            raise self._inseparable(str(why)) from None
        self._drop_own()
        restate(parts, choice.count)
        for each in slices:
            narrow(self.editor, each, choice)
        self._tell_count(choice.count)
        return True

    def silence(self, module: nn.Module) -> bool:
        """No head is left: `y = module(x)`, whose parameter `bias` is that of `proj`.

        It stands where `proj` did; what else the attention has goes.

        Args:
            module: yields the bias for every token.

        Returns:
            At lowering, whether it could.
        """
        lowering = self.context.insertion is not None
        if not lowering and (self._own_call is not None or self._is_narrowed):
            raise self.twice
        self._drop_own()
        layer = self._needed(self.attention.proj)
        call, source = self.editor.node(layer.call), self._source([self.attention.q])
        unit, path = self.editor.where(layer.call).unit, layer.weight.rpartition(".")[0]
        old = self.editor.root.get_submodule(path)._parameters.get("bias")
        hint = str(HINT.drop(call) or "y")
        self.editor.take_out(path, self.clause)
        owner, _, name = path.rpartition(".")
        (made,) = self.put(module, unit, [source], (hint,), owner=owner, name=name, owners=(path,))
        if old is not None:
            take_over(self.editor, module, old)
        call.replace_all_uses_with(made)
        made.graph.erase_node(call)
        eliminate_dead_code(made.graph)
        take_out_unread(self.editor, unit, self.clause)
        return True

    def _drop_own(self) -> None:
        """At lowering takes the module out; the graph stays what heads were found in."""
        if self.context.insertion is not None:
            self.bypass(self.insertion.path)
            self.remove(self.insertion)

    def _tell_count(self, count: int) -> None:
        """The module knows how many it has, by the name that it has for that."""
        unit = self.editor.own(self._unit)
        known = unit.settings.items()
        fewer = {k: count for k, v in known if "heads" in k and v == self.heads}
        unit.__dict__["settings"] = {**unit.settings, **fewer}

    # -- the tensors -----------------------------------------------------------------------------

    @property
    def _is_narrowed(self) -> bool:
        """Whether a clause took heads out already."""
        return self._needed(self.attention.proj).weight in self.editor.narrowed

    @property
    def _weighing(self) -> list[tuple[torch.Tensor, Slices]]:
        """What says how much a head weighs: its rows of v, and its columns of `proj`."""
        v, proj = self._needed(self.attention.v), self._needed(self.attention.proj)
        rows = torch.cat([torch.arange(*piece, device="cpu") for piece in v.ranges])
        columns = torch.arange(proj.in_features, device="cpu")
        found = (v.weight, 0, rows), (proj.weight, 1, columns)
        return [
            (self.editor.root.get_parameter(name), Slices(name, axis, each.view(self.heads, -1)))
            for name, axis, each in found
        ]

    def _slices(self, parts: PartNumbers) -> Iterator[Slices]:
        """Where the heads are in the tensors of the attention."""
        seen: set[fx.Node] = set()
        for layer in (self.attention.q, self.attention.k, self.attention.v):
            call = self.editor.node(self._needed(layer).call)
            if call not in seen:
                seen.add(call)
                of = _positions(line(parts.known[call]), self.heads)
                yield Slices(self._needed(layer).weight, 0, of)
                yield from self._biases(parts, call, of)
        target, _ = self._read_by_proj()
        proj = self._needed(self.attention.proj)
        yield Slices(proj.weight, 1, _positions(line(parts.known[target]), self.heads))
        each = torch.arange(self.heads, device="cpu")[:, None]
        for node, axis in parts.held.items():
            if node.op == "get_attr":
                yield Slices(join(self._unit, str(node.target)), axis, each)
            else:
                path = join(self._unit, str(last_layer(self.editor.unit(self._unit), node)))
                yield from _of_layer(self.editor.root.get_submodule(path), path, each)

    def _biases(self, parts: PartNumbers, call: fx.Node, of: torch.Tensor) -> Iterator[Slices]:
        """What a layer adds, be it of one tensor or of several behind each other."""
        if call.op == "call_module":
            path = join(self._unit, str(call.target))
            if self.editor.root.get_submodule(path)._parameters.get("bias") is not None:
                yield Slices(f"{path}.bias", 0, of)
            return
        bias = call.args[2] if len(call.args) > 2 else call.kwargs.get("bias")
        start, pieces = 0, [bias]
        if isinstance(bias, fx.Node) and name_of(bias) == "cat":
            pieces = list(bias.args[0])  # type: ignore[arg-type]
        for piece in pieces:
            if piece is None:
                continue
            if not isinstance(piece, fx.Node) or piece.op != "get_attr":
                raise MixedError("the bias of a layer is made of something else")
            stop = start + parts.values[piece].shape[0]
            own = of[(of >= start) & (of < stop)].view(self.heads, -1) - start
            yield Slices(join(self._unit, str(piece.target)), 0, own)
            start = stop


def _positions(numbers: torch.Tensor, count: int) -> torch.Tensor:
    """The positions of each part, [parts, n], of the part at each position."""
    return torch.stack([(numbers == i).nonzero().flatten() for i in range(count)])


def _of_layer(layer: nn.Module, path: str, of: torch.Tensor) -> Iterator[Slices]:
    """The rows of a linear layer."""
    yield Slices(f"{path}.weight", 0, of)
    if layer._parameters.get("bias") is not None:
        yield Slices(f"{path}.bias", 0, of)
