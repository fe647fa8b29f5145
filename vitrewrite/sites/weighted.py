"""What layers with weights have in common: what stands at them, and whether it folds."""

from __future__ import annotations

import operator
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn

from ..anatomy.sites import Place
from ..editing import branches, wiring
from ..editing.editor import join, relative
from ..editing.evaluate import Evaluation
from ..editing.projection import projected
from ..editing.value import Value
from ..tracing.notes import HINT
from .base import BoundSite
from .context import Drops
from .dropping import KeepSamples


@dataclass(frozen=True, eq=False)
class WeightedSite(BoundSite):
    """A layer with weights, or some rows of them."""

    @property
    def path(self) -> str:
        """The module that holds the layer."""
        return self._layer.rpartition(".")[0]

    @property
    def _layer(self) -> str:
        """The path of the layer."""
        raise NotImplementedError

    @property
    def _owner(self) -> nn.Module:
        """The module that has the weights."""
        return self.editor.root.get_submodule(self._layer)

    @property
    def _name(self) -> str:
        """What names a module beside the layer."""
        name = self._layer.rpartition(".")[2]
        return f"layer{name}" if name.isdigit() else name

    @property
    def _owners(self) -> tuple[str, ...]:
        """What names the parts in a delta."""
        return (self._layer,)

    @property
    def _calls(self) -> list[Place]:
        """All calls of the layer."""
        raise NotImplementedError

    @property
    def _taken(self) -> Sequence[tuple[int, int]]:
        """The rows of what the layer yields that the site is about."""
        raise NotImplementedError

    @property
    def output(self) -> Value:
        """What the layer yields where it is called first, all that stands there included."""
        place = self._calls[0]
        node = self.editor.node(place)
        *_, last = (node, *branches.chain(self.editor, place.unit, node))
        return Value(Place(place.unit, last.name))

    def refuse_twice(self) -> None:
        """Raises VR402 if the pass is at these rows of the layer already."""
        for place in self._calls:
            node, unit = self.editor.node(place), self.editor.unit(place.unit)
            calls = branches.chain(self.editor, place.unit, node)
            modules = (unit.get_submodule(str(n.target)) for n in calls)
            same = (m for m in modules if getattr(m, "inserted_by", None) == self.pass_name)
            if any(not (r := getattr(m, "rows", ())) or meet(self._taken, r) for m in same):
                raise self.twice

    # -- what stands there ----------------------------------------------------------------------

    def _stand(
        self,
        module: nn.Module,
        drops: Drops,
        *,
        behind: bool = False,
        given: tuple[Value, ...] = (),
        through: Value | None = None,
    ) -> None:
        """`y = layer(x)` becomes `y = module(x, layer(x))`: one module, beside every call.

        Modules at one layer stand in the order in which they are put in, except that those which
        fold come before those which do not, and those beside the layer before those behind it.

        Args:
            module: what is put in.
            drops: what is dropped of its input and of what it yields.
            behind: whether it is called as `module(layer(x))`.
            given: values that it is called with besides.
            through: a factor [r, d] that x is multiplied with before it gets it.

        Raises:
            RewriteError: VR410 if a unit applies the layer that does not hold it.
        """
        self._check_inside()
        path, child = "", f"{self._name}_{self._stem}"
        for place in self._calls:
            layer = self.editor.node(place)
            folds = self.context.folds
            node = branches.last(self.editor, place.unit, layer, folding=folds, behind=behind)
            hint = str(HINT.drop(node) or self._name)
            x = layer.args[0]
            assert isinstance(x, fx.Node)
            args = [node] if behind else [self._dropped(place.unit, x, drops.dropout), node]
            if through is not None:
                args[0] = self._projected(place.unit, args[0], through)
            if drops.path and (kept := self._kept(place, x, drops.path, f"{child}_keep")):
                args.append(kept)
            args += [value.read(self.editor, place.unit) for value in given]
            if path:
                target, origin = relative(path, place.unit), self.clause.origin
                (new,) = self.editor.call(place.unit, target, args, origin=origin, hints=(hint,))
            else:
                (new,) = self.put(
                    module,
                    place.unit,
                    args,
                    (hint,),
                    name=child,
                    owners=self._owners,
                    changed=(0 if behind else 1,),
                    folds=folds,
                    given=given,
                    through=through,
                )
                path = self.editor.insertions[-1].path
            users = set(node.users) - {new}
            node.replace_all_uses_with(new, delete_user_cb=users.__contains__)
            self.editor.stacks[place] = branches.stacked(self.editor, place.unit, layer)

    def _check_inside(self) -> None:
        units = (c.unit for c in self._calls if c.unit)
        outside = next((u for u in units if not f"{self.path}.".startswith(f"{u}.")), None)
        if outside is not None:
            raise self.unfit(f"'{outside}' applies it too, which it is no part of")

    def expect_fold(self) -> None:
        """Waives the exact lowering if a layer is not its holder's alone, so that it keeps it."""
        if self.context.folds and self.editor.holders(self._owner) > 1:
            self.waive("lowers_exactly", "the layer is part of more than one module")
        if self.context.folds:
            self.at_end(self._expect_own)

    def _expect_own(self) -> None:
        """Waives it if something else reads the weight, as long as it does."""
        if other := next(self._lent, None):
            self.waive("lowers_exactly", f"'{other}' reads the weight of the layer too")

    def _dropped(self, unit: str, x: fx.Node, p: float) -> fx.Node:
        """x behind a dropout that all sites of the clause which read it share."""
        if not p:
            return x
        known, key = self.context.shared, f"dropout of {x.name} in {unit or 'the root'}"
        if key not in known:
            node = self.help(nn.Dropout(p), unit, (x,), f"{self._stem}_dropout", "dropped")
            known[key] = Value(Place(unit, node.name))
        return known[key].read(self.editor, unit)

    def _projected(self, unit: str, x: fx.Node, through: Value) -> fx.Node:
        """x times a factor [r, d], in pieces of d channels; all sites that read x share it."""
        factor = through.read(self.editor, unit)
        width = self._evaluated(through).shape[1]
        chunks = self.like.shape[1] // width
        origin = self.clause.origin
        return projected(self.editor, unit, x, factor, chunks, width, origin)

    def _evaluated(self, value: Value) -> torch.Tensor:
        """What a value is that depends on no image, on meta while a model is rewritten."""
        place = self.editor.where(value.place)
        found: torch.Tensor = Evaluation(self.editor, {}).value(place.unit, self.editor.node(place))
        return found

    def _kept(self, call: Place, x: fx.Node, p: float, name: str) -> fx.Node | None:
        """By sample, whether a branch beside a call is kept; None where nobody asked for that.

        Raises:
            RewriteError: VR413 if samples cannot be told apart in what is called with.
        """
        batches = self.context.batches
        samples = None if batches is None else batches.at(call)
        if samples is None and "drop_path" not in self.clause.options:
            self.warn("where samples cannot be told apart, its branch is not dropped by sample")
            return None
        if samples is None:
            raise self.clause.error(
                "VR413",
                f"at '{self.role}' the samples of a batch cannot be told apart, so that "
                f"{self.pass_name} cannot drop its branch by sample",
                "drop_path",
                suggestion="write drop_path=0",
            )
        args = [x] if samples.order == "alone" else [x, self._batch(call.unit)]
        module = KeepSamples(p, samples.axis, samples.order != "apart")
        return self.help(module, call.unit, args, name, "keep")

    def _batch(self, unit: str) -> fx.Node:
        """How many samples there are, read off the nearest input that has one row for each."""
        assert self.context.batches is not None
        for path in wiring.callers(self.editor, unit):
            for node in [n for n in self.editor.graph(path).nodes if n.op == "placeholder"]:
                samples = self.context.batches.at(Place(path, node.name))
                if samples is not None and samples.order == "alone":
                    size = wiring.size_of(self.editor, path, node, samples.axis)
                    return wiring.read(self.editor, Place(path, size.name), unit)
        raise self.unfit("no input of the model says how many samples there are")

    @property
    def _lent(self) -> Iterator[str]:
        """Who reads its weight besides the layer, such as what stands in for its attention."""
        for place in self._calls:
            layer, graph = self.editor.node(place), self.editor.graph(place.unit)
            for node in graph.nodes:
                if node.op == "get_attr" and join(place.unit, str(node.target)) == self._lends:
                    yield from (join(place.unit, str(u.target)) for u in _readers(node, layer))

    @property
    def _lends(self) -> str:
        return f"{self._layer}.weight"

    # -- lowering -------------------------------------------------------------------------------

    @property
    def factors(self) -> tuple[torch.Tensor, ...]:
        """What `parallel` was told: what x is multiplied with first, if it is, and `given`."""
        put = self.insertion
        first = () if put.through is None else (put.through,)
        return tuple(map(self._evaluated, (*first, *put.given)))

    @property
    def foldable(self) -> bool:
        """Whether the weights of the layer can take what the module does to its rows.

        Not if another module changes those rows before, and not if the layer runs elsewhere too.
        """
        if self.editor.holders(self._owner) > 1 or any(self._lent):
            return False
        layers = {self.editor.node(call) for call in self._calls}
        found = [self._layer_of(u, n, layers) for u, n in self.calls_of(self.insertion)]
        return len(found) == len(layers) and set(found) == layers

    def _layer_of(self, unit: str, call: fx.Node, layers: Container[fx.Node]) -> fx.Node | None:
        """The call of the layer that a call of a module is at, if nothing changes rows before."""
        y = branches.changed(self.editor, unit, call)
        while y not in layers and isinstance(y, fx.Node) and y.op == "call_module":
            other = self.editor.unit(unit).get_submodule(str(y.target))
            if not (rows := getattr(other, "rows", None)) or meet(self._taken, rows):
                return None
            y = branches.changed(self.editor, unit, y)
        return y if isinstance(y, fx.Node) and y in layers else None


def _readers(node: fx.Node, layer: fx.Node) -> Iterator[fx.Node]:
    """What is called with a tensor or rows of it, but for a layer, or for its device and dtype."""
    for user in node.users:
        if user.target is operator.getitem:
            yield from _readers(user, layer)
        elif user is not layer and user.target is not getattr:
            yield user


def meet(some: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]]) -> bool:
    """Whether ranges of rows have a row in common."""
    return any(start < b and a < stop for start, stop in some for a, b in others)
