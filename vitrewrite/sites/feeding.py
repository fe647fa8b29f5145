"""Verbs of layers that take `W x + b` of what they read: what stands in front of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import fx, nn

from ..anatomy.sites import Place
from ..catalog.own_code import file_of
from ..editing import branches, readers, slices
from ..editing.editor import Insertion, join, relative
from ..editing.folds import Fold
from ..editing.value import Value
from ..tracing.notes import HINT, VALUE
from .affine import AffineSite


@dataclass(frozen=True, eq=False)
class FedSite(AffineSite):
    """A linear layer or a convolution."""

    @property
    def in_features(self) -> int:
        """Channels of what it reads."""
        return int(self.editor.root.get_parameter(self._weight).shape[1])

    def before(self, module: nn.Module) -> None:
        """`y = layer(x)` becomes `y = layer(module(x))`, wherever the layer is called.

        Layers of the clause that read one x share the module of the first, as separate q, k and v
        do. What stands beside them reads `module(x)` too, whatever the order of the clauses; a
        branch of its own that reads x does not.

        Raises:
            RewriteError: VR402 if the pass is there already, VR410 if a unit calls the layer that
                does not hold it, or later if another layer or, of a norm, anything else reads x.
        """
        if self.axis != getattr(module, "axis", -1):
            raise self.unfit(f"it works on the last axis, and channels lie on axis {self.axis}")
        self._check_inside()
        known, put = self.context.shared, None
        for place in self._calls:
            layer, unit = self.editor.node(place), place.unit
            x = layer.args[0]
            assert isinstance(x, fx.Node)
            key = f"in front of the readers of {x.name} in {unit or 'the root'}"
            if key in known:
                new = known[key].read(self.editor, unit)
                put = next(i for i in self.editor.insertions if i.path == _path(unit, new))
                if self not in put.others and put.site is not self:
                    put.others.append(self)
            else:
                new, put = self._feed(module, put, unit, x)
                known[key] = Value(Place(unit, new.name))
            self._reroute(unit, layer, x, new)

    def _feed(
        self, module: nn.Module, put: Insertion | None, unit: str, x: fx.Node
    ) -> tuple[fx.Node, Insertion]:
        """Calls a module with x; the one that the site has already, if it is called again."""
        hint = str(HINT.get(x) or "x")
        if put is not None:
            origin, target = self.clause.origin, relative(put.path, unit)
            (new,) = self.editor.call(unit, target, [x], origin=origin, hints=(hint,))
            return new, put
        if not branches.is_ahead(module):
            raise self.clause.error(
                "VR435",
                f"{type(module).__name__} does not say that it stands in front of layers",
                notes=[f"in {file_of(type(module))}"],
                suggestion="write ahead = True in the class",
            )
        name = f"{self._name}_{self._stem}"
        (new,) = self.put(
            module,
            unit,
            [x],
            (hint,),
            name=name,
            owners=self._owners[:1],
            changed=(0,),
            folds=self.context.folds,
        )
        put = self.editor.insertions[-1]
        self.at_end(lambda: self._settle(put))
        return new, put

    def _reroute(self, unit: str, layer: fx.Node, x: fx.Node, new: fx.Node) -> None:
        """Has a layer, and what is beside it, read another value."""
        beside = [c for c in branches.chain(self.editor, unit, layer) if len(c.args) > 1]
        for call in (layer, *beside):
            old = call.args[0]
            assert isinstance(old, fx.Node)
            made = slices.copy([old], {x: new}, call)
            for node, twin in made.items():
                if VALUE.on(node):
                    VALUE.put(twin, VALUE.of(node))
            call.update_arg(0, made.get(old, old))
            if made.get(old, old) is not old and old is not x:
                slices.erase_unread(old)

    # -- what else reads x ----------------------------------------------------------------------

    def _settle(self, put: Insertion) -> None:
        """Once all clauses are through: who reads x, and whether the weights can take the module.

        Raises:
            RewriteError: VR410 for other readers.
        """
        for unit, call in self.calls_of(put):
            x = call.args[0]
            assert isinstance(x, fx.Node)
            found = readers.origin(self.editor, unit, x, (call,))
            layers, norm = self._matrices, self._is_norm(found.unit, found.node)
            others = [r for r in found.others if norm or Place(r.unit, r.node.name) in layers]
            if others:
                raise self.unfit(
                    f"what '{self._layer}' reads is read by {', '.join(map(str, others[:3]))} too, "
                    f"which {self.pass_name} here would not change it for",
                    suggestion="name all layers that read it as it is, or other sites",
                )
        for site in self._fed(put):
            site._expect_one_source()
        if put.folds and (reason := self._unfoldable(put)):
            self.waive("lowers_exactly", reason)

    @property
    def _matrices(self) -> set[Place]:
        """Where linear layers of the model are called."""
        known = self.context.anatomy.calls.values()
        return {self.editor.where(call) for calls in known for call in calls}

    def _is_norm(self, unit: str, node: fx.Node) -> bool:
        """Whether a node is what a norm of the model yields."""
        norms = self.context.anatomy.norms
        calls = {self.editor.where(call) for norm in norms for call in norm.calls}
        return Place(unit, node.name) in calls or _path(unit, node) in {n.path for n in norms}

    def _expect_one_source(self) -> None:
        """What is to be adapted in front of several layers at once has to be one value."""

    def _unfoldable(self, put: Insertion) -> str:
        """Why the weights of the layers cannot take a module in front of them, or nothing."""
        known = {i.path: i for i in self.editor.insertions}
        for site in self._fed(put):
            if reason := site._stays():
                return reason
            for place in site._calls:
                layer = self.editor.node(place)
                for call in branches.chain(self.editor, place.unit, layer):
                    found = known.get(path := _path(place.unit, call))
                    if len(call.args) > 1 and not (found and found.folds):
                        return f"'{path}' is beside the layer, and stays"
        return ""

    def _stays(self) -> str:
        """Why the layer takes nothing in front of it, or nothing."""
        if self.editor.holders(self._owner) > 1:
            return "the layer is part of more than one module"
        if other := next(self._lent, None):
            return f"'{other}' reads the weight of the layer too"
        if self._affine is None:
            return "the layer has no bias of its own that could take the shift"
        return ""

    def _fed(self, put: Insertion) -> list[FedSite]:
        """All sites that a module stands in front of."""
        return [s for s in (put.site, *put.others) if isinstance(s, FedSite)]

    # -- lowering -------------------------------------------------------------------------------

    def fold_before(self, matrix: torch.Tensor, shift: torch.Tensor | None = None) -> bool:
        """At lowering: all layers behind the module take `A x + c` in, and it goes.

        `W` becomes `W A`, the bias `b + W c`, in float32 or better. A layer of torch without bias
        gets one.

        Args:
            matrix: A, [in_features, in_features], or its diagonal, [in_features].
            shift: c, [in_features]; zero by default.

        Returns:
            Whether it could: no layer is shared or without a bias to be had, and nothing else reads
            what the module yields.
        """
        put = self.insertion
        fed = [replace(s, context=self.context) for s in self._fed(put)]
        layers = {self.editor.node(call) for site in fed for call in site._calls}
        read = {user for _, call in self.calls_of(put) for user in call.users}
        if read != layers or any(site._stays() for site in fed):
            return False
        for site in fed:
            site._take_in(matrix, shift)
        self.drop()
        return True

    def _take_in(self, matrix: torch.Tensor, shift: torch.Tensor | None) -> None:
        name, before = self._affine, self._applied()
        assert name is not None
        weight = self._wide(self._weight)
        made = (
            {self._weight: weight}
            if shift is None
            else {self._weight: weight, name: self._wide(name)}
        )
        a = matrix.detach().to(weight.dtype)
        for start, stop in (piece for found in self._pieces for piece in found):
            rows = weight[start:stop].flatten(1)
            if shift is not None:
                made[name][start:stop] += rows @ shift.detach().to(weight.dtype)
            product = rows * a if a.dim() == 1 else rows @ a
            weight[start:stop] = product.view_as(weight[start:stop])
        for name, new in made.items():
            self._set(name, new)
        self.editor.folds.append(Fold(self.insertion, tuple(made), before, self._applied()))

    def refuse_twice(self) -> None:
        """Raises VR402 if the pass is at the layer already, also in front of it."""
        super().refuse_twice()
        for place in self._calls:
            x = self.editor.node(place).args[0]
            while isinstance(x, fx.Node) and x.op == "call_module":
                module = self.editor.root.get_submodule(_path(place.unit, x))
                if getattr(module, "inserted_by", None) == self.pass_name:
                    raise self.twice
                x = x.args[0] if branches.is_ahead(module) else None


def _path(unit: str, call: fx.Node) -> str:
    """The path of the module that a node calls."""
    return join(unit, str(call.target))
