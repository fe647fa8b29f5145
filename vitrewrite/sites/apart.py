"""Where the heads of an attention are in its graph, each by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import fx, nn

from ..anatomy.sites import Linear
from ..editing import wiring
from ..editing.editor import join
from ..editing.measure import Propagation
from ..editing.parts import (
    NONE,
    MixedError,
    PartNumbers,
    axis_of,
    line,
    name_of,
    numbered,
)
from ..editing.slices import ahead
from ..tracing.inputs import example_of_one
from ..tracing.unit import Unit, on_meta
from .linear import LinearSite
from .scores import ScoresSite

_SIZES = ("size", "getattr", "dim")
_RUNS: WeakKeyDictionary[nn.Module, Propagation] = WeakKeyDictionary()
"""By tree a run of it, for what its attentions are called with, which verbs here never change."""


@dataclass(frozen=True, eq=False)
class ApartSite(ScoresSite):
    """An attention whose heads are told apart in all that it computes."""

    @property
    def proj(self) -> LinearSite:
        """The layer behind its heads."""
        return LinearSite(self.context, (self._needed(self.attention.proj),))

    def _parts(self, *, ended: bool = False) -> PartNumbers:
        """The heads in the graph of the attention, up to what `proj` reads.

        Args:
            ended: whether other clauses are through: what folds into layers is as good as gone.

        Raises:
            MixedError: where they cannot be told apart.
        """
        self._expect_apart()
        target, own = self._read_by_proj()
        graph = target.graph
        layers = (self.attention.q, self.attention.k, self.attention.v)
        values = self._values(ended)
        known = self._rows([self._needed(layer) for layer in layers], values)
        passing = {own, *(self._folding(graph) if ended else ())} - {None}
        unit = self.editor.unit(self._unit)
        parts = PartNumbers(unit, values, self.heads, known, passing=passing)
        needed = ahead([target])
        parts.follow(n for n in graph.nodes if n in needed)
        numbers = parts.known.get(target)
        width = self.attention.v.out_features // self.heads if self.attention.v else 0
        wanted = torch.arange(self.heads, device="cpu").repeat_interleave(width)
        if not isinstance(numbers, torch.Tensor) or axis_of(numbers) != numbers.dim() - 1:
            raise MixedError("they do not lie side by side in front of 'proj'")
        if not torch.equal(line(numbers).long(), wanted):
            raise MixedError("they take turns in front of 'proj'")
        self._expect_unread(parts, needed, target)
        return parts

    def _folding(self, graph: fx.Graph) -> list[fx.Node]:
        """Calls of modules that the layers which they stand at will take."""
        folding = {i.path for i in self.editor.insertions if i.folds}
        calls = (n for n in graph.nodes if n.op == "call_module")
        return [n for n in calls if join(self._unit, str(n.target)) in folding]

    def _expect_unread(self, parts: PartNumbers, needed: set[fx.Node], target: fx.Node) -> None:
        """Raises MixedError if something else reads what heads make."""
        proj = self.editor.node(self._needed(self.attention.proj).call)
        for node in parts.known:
            for user in node.users:
                last = node is target and (user.op == "output" or user is proj)
                known = user in needed or user in parts.passing or name_of(user) in _SIZES
                if not known and not last:
                    raise MixedError(f"'{user.name}' reads them too")

    def _values(self, ended: bool) -> dict[fx.Node, Any]:
        """What each node of the attention yields on meta."""
        unit = self.editor.own(self._unit)
        assert unit.template is not None
        inputs = [n for n in unit.template.graph.nodes if n.op == "placeholder"]
        run = self._run(ended)
        given = run.given(self._unit, len(inputs))
        if given is None:
            raise MixedError("it is not known what it is called with")
        return run.within(unit, given)

    def _run(self, ended: bool) -> Propagation:
        """A run of the model for one image, as it was before the clause or as it is at the end."""
        if self.context.insertion is None and not ended:
            assert self.context.batches is not None
            return self.context.batches.runs[0]
        root = self.editor.root
        if root not in _RUNS:
            _RUNS[root] = Propagation(on_meta(root), example_of_one(root))
        return _RUNS[root]

    def _rows(
        self, layers: Sequence[Linear], values: Mapping[fx.Node, Any]
    ) -> dict[fx.Node, torch.Tensor]:
        """The calls of layers, with the head of each row."""
        rows: dict[fx.Node, torch.Tensor] = {}
        for layer in layers:
            call, place = self.editor.node(layer.call), self.editor.where(layer.call)
            if place.unit != self._unit or layer.offset or layer.axis != -1:
                raise MixedError(f"'{layer.role}' is no layer of its module")
            width = values[call].shape[-1]
            own = rows.setdefault(call, torch.full((width,), NONE, device="cpu"))
            each = torch.arange(self.heads, device="cpu")
            taken = torch.cat([torch.arange(*piece, device="cpu") for piece in layer.ranges])
            own[taken] = each.repeat_interleave(layer.out_features // self.heads)
        if any(bool((own == NONE).any()) for own in rows.values()):
            raise MixedError("a layer makes other values besides")
        return {n: numbered(values[n].shape, values[n].dim() - 1, own) for n, own in rows.items()}

    def _read_by_proj(self) -> tuple[fx.Node, fx.Node | None]:
        """What `proj` reads, and the call of the pass's own module in front of it."""
        own, place = self._own_call, self.editor.where(self._needed(self.attention.proj).call)
        call, unit = self.editor.node(place) if own is None else own, place.unit
        self.editor.graph(self._unit)  # of its own, whatever leads to it
        x: object = call.args[0]
        while unit != self._unit:
            unit, x = self._before(unit, x)
        if not isinstance(x, fx.Node):
            raise MixedError("'proj' is in another module")
        return x, own

    def _before(self, unit: str, x: object) -> tuple[str, object]:
        """What a value is in the unit that hands it on, or that makes it."""
        if isinstance(x, fx.Node) and len(x.users) == 1:
            if x.op == "placeholder" and unit:
                inputs = [n for n in x.graph.nodes if n.op == "placeholder"]
                above, (call, *others) = wiring.caller(self.editor, unit)
                if not others:
                    return above, call.args[inputs.index(x)]
            item = x.args[1] if name_of(x) == "getitem" else None
            made = x.args[0] if item is not None else x
            path = join(unit, str(made.target)) if isinstance(made, fx.Node) else ""
            if isinstance(made, fx.Node) and made.op == "call_module":
                below = self.editor.root.get_submodule(path)
                if isinstance(below, Unit) and below.template is not None:
                    results: Any = list(below.template.graph.nodes)[-1].args[0]
                    return path, results if item is None else results[item]
        raise MixedError("'proj' is in another module")

    @property
    def _own_call(self) -> fx.Node | None:
        """The call of the module of the pass in front of `proj`, if there is one."""
        place = self.editor.where(self._needed(self.attention.proj).call)
        x = self.editor.node(place).args[0]
        if not isinstance(x, fx.Node) or x.op != "call_module":
            return None
        module = self.editor.unit(place.unit).get_submodule(str(x.target))
        return x if getattr(module, "inserted_by", None) == self.pass_name else None

    # -- whether it can be ----------------------------------------------------------------------

    def _expect_apart(self) -> None:
        """Raises VR488 unless each head has its own queries, keys and values."""
        found = self.attention
        layers = [self._needed(s) for s in (found.q, found.k, found.v)]
        if found.over != "tokens" or found.form not in ("sdpa", "manual"):
            raise self._inseparable("it does not attend over tokens by heads")
        if any(layer.out_features % self.heads for layer in layers) or not self._has_own_keys:
            raise self._inseparable("heads share their keys and values")

    @property
    def _has_own_keys(self) -> bool:
        q, k = self._needed(self.attention.q), self._needed(self.attention.k)
        return q.out_features == k.out_features

    def _inseparable(self, why: str) -> Exception:
        return self.clause.error(
            "VR488",
            f"{self.pass_name} at '{self.role}': {why}, so that no head can be taken out by itself",
        )

    def _needed(self, layer: Linear | None) -> Linear:
        if layer is None:
            raise self.unfit("it lacks one of its layers")
        return layer
