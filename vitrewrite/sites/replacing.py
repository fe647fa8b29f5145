"""A part of the model whose work a module does, with the part's own weights as arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import getitem

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..anatomy.sites import Linear, Place
from ..editing import branches, stripping, wiring
from ..editing.editor import after
from ..editing.evaluate import Evaluation
from ..editing.slices import erase_unread
from ..editing.value import Value, shape_of
from ..tracing.notes import HELD, HINT
from ..tracing.template import eliminate_dead_code
from .base import BoundSite


@dataclass(frozen=True, eq=False)
class ReplacedSite(BoundSite):
    """A part that is one module, and can be told what to yield instead."""

    def parallel(self, module: nn.Module, *values: Value) -> None:
        """`y = part(x)` becomes `y = module(x, part(x), *values)`; the part stays what it is.

        Raises:
            RewriteError: VR410 if it is no module of its own, or its layers read several inputs.
        """
        self._keep(self._layers, module, values, beside=True, handed=False)

    @property
    def result(self) -> Value:
        """What the part yields, as the clauses leave it.

        Raises:
            RewriteError: VR410 if it is no module of its own.
        """
        unit, returned = self._own_unit, self._output.args[0]
        y = returned[0] if isinstance(returned, (tuple, list)) else returned
        assert isinstance(y, fx.Node)
        return Value(Place(unit, y.name))

    @property
    def _layers(self) -> tuple[Linear | None, ...]:
        """Its layers, in the order in which a module that stands for it is given them."""
        raise NotImplementedError

    def _keep(
        self,
        layers: Sequence[Linear | None],
        module: nn.Module,
        values: Sequence[Value],
        *,
        beside: bool,
        handed: bool = True,
        then: Callable[[], None] | None = None,
    ) -> None:
        """`y = module(x, *tensors, *values)`, or `module(x, y, *tensors, *values)` with `beside`.

        The tensors, if they are `handed`, are weight and bias of each layer, None for a bias that
        is not there. `then` is done once the module is read in place of what the part yielded.
        """
        unit, editor = self._own_unit, self.editor
        source = self._source(layers or self._layers)
        given: list[fx.Node | None] = [source]
        returned = self._output.args[0]
        y = returned[0] if isinstance(returned, (tuple, list)) else returned
        assert isinstance(y, fx.Node)
        if beside:
            given.append(y)
        if not handed and shape_of(source) != shape_of(y):
            raise self.unfit("what it yields has another shape than what it reads")
        for layer in layers if handed else ():
            given += self._tensors(layer)
        given += [value.read(editor, unit) for value in values]
        hint = str(HINT.get(y) or "y")
        (made,) = self.put(
            module,
            unit,
            given,
            (hint,),
            owner=unit,
            name=self._stem,
            changed=(int(beside),),
            around=beside,
        )
        if beside:
            y.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)
            return
        HELD.put(made, True)
        places = Place(unit, made.name), Place(unit, y.name)
        # Behind what other clauses leave for the end: what they put into the part would be lost.
        self.at_end(lambda: self.at_end(lambda: self._replace(*places, then)))

    def _replace(self, made: Place, y: Place, then: Callable[[], None] | None) -> None:
        """Has the module read in place of what the part yielded, once all clauses are through."""
        inside = (i for i in self.editor.insertions if f"{i.path}.".startswith(f"{self.path}."))
        other = next((i for i in inside if i.clause != self.clause.number), None)
        if other is not None:
            raise self._lost(other.site.clause.origin)
        new, old = self.editor.node(made), self.editor.node(y)
        HELD.drop(new)
        old.replace_all_uses_with(new)
        erase_unread(old)
        eliminate_dead_code(new.graph)
        wiring.release(self.editor, made.unit)
        if then is not None:
            then()

    def _lost(self, clause: str) -> Exception:
        return self.clause.error(
            "VR412",
            f"{self.pass_name} has '{self.role}' do something else, and another clause is about "
            "what it did",
            notes=[f"the other clause: {clause}"],
            suggestion=f"take '{self.role}' out of one of the clauses",
        )

    @property
    def _own_unit(self) -> str:
        """The unit that is the part, and nothing else."""
        raise NotImplementedError

    @property
    def _output(self) -> fx.Node:
        nodes = self.editor.graph(self._own_unit).nodes
        found: fx.Node = next(n for n in nodes if n.op == "output")
        return found

    def _source(self, layers: Sequence[Linear | None]) -> fx.Node:
        """What the layers in front read: those that read an input of the part."""
        calls = [self.editor.node(s.call) for s in layers if s is not None]
        found = {x for n in calls if _is_input(x := self._given(n))}
        (source, *others) = found or {None}
        if not isinstance(source, fx.Node) or others:
            raise self.unfit("its layers do not read one input as it is")
        return source

    def _given(self, call: fx.Node) -> object:
        """What a layer reads, as it was before passes changed it."""
        x: object = call.args[0]
        while isinstance(x, fx.Node) and not _is_input(x):
            x = branches.changed(self.editor, self._own_unit, x)
        return x

    def _tensors(self, layer: Linear | None) -> list[fx.Node | None]:
        """Weight and bias of a layer, or of the rows of a fused one."""
        if layer is None or layer.call.unit != self._own_unit:
            raise self.unfit("it lacks one of its layers")
        if layer.pieces:
            raise self.unfit(f"the rows of '{layer.role}' have gaps")
        call, graph = self.editor.node(layer.call), self.editor.graph(self._own_unit)
        rows = [tuple(n - layer.offset for n in layer.rows)] if layer.rows else []
        found: list[fx.Node | None]
        if call.op == "call_module":
            held = self.editor.unit(self._own_unit).get_submodule(str(call.target))
            with after(graph, []):
                names = [n for n in ("weight", "bias") if getattr(held, n, None) is not None]
                found = [graph.get_attr(f"{call.target}.{name}") for name in names]
        elif call.target is F.linear:
            known = [*call.args[1:], *call.kwargs.values()]
            found = [n for n in known if isinstance(n, fx.Node)]
        else:
            raise self.unfit(f"'{layer.role}' is no linear layer")
        for first, last in rows:
            with after(graph, [n for n in found if n is not None]):
                index = slice(first or None, last)
                found = [n and graph.call_function(getitem, (n, index)) for n in found]
        return [*found, None][:2]

    # -- lowering -------------------------------------------------------------------------------

    def called_with(self, *inputs: int) -> list[torch.Tensor | None]:
        """At lowering: tensors that the module is called with and that depend on no image.

        Args:
            inputs: which of what it is called with.
        """
        call, run = self.call_of(self.insertion), Evaluation(self.editor, {})
        nodes = [call.args[i] for i in inputs]
        unit = self.insertion.unit
        return [run.value(unit, n) if isinstance(n, fx.Node) else None for n in nodes]

    @property
    def given(self) -> int:
        """At lowering: how many values the module is called with."""
        return len(self.call_of(self.insertion).args)

    def take_over(
        self, module: nn.Module, given: Sequence[int] = (0,), *, whole: bool = False
    ) -> None:
        """At lowering: `y = module(x)` for good; what nothing reads any more goes.

        The map of `keys` says that its tensors went into the module.

        Args:
            module: yields what x is a changed form of.
            given: which of the inputs of the module that was there it gets.
            whole: whether x is the map from now on that windows, which it was, are cut from.
        """
        insertion = self.insertion
        call, unit = self.call_of(insertion), insertion.unit
        args, hint = [call.args[i] for i in given], str(HINT.get(call) or "y")
        owner, _, name = insertion.path.rpartition(".")
        graph = self.editor.graph(unit)
        before = stripping.read(graph)
        self.remove(insertion)
        (made,) = self.put(
            module,
            unit,
            [a for a in args if isinstance(a, fx.Node)],
            (hint,),
            owner=owner,
            name=name,
            changed=(0,),
            owners=insertion.owners,
        )
        call.replace_all_uses_with(made)
        erase_unread(call)
        eliminate_dead_code(graph)
        if whole:
            self._given_whole()
        if unit == self.path:
            stripping.strip(self.editor, unit, self.clause)
        else:
            stripping.forget(self.editor, unit, before, self.clause)
        wiring.release(self.editor, unit)

    def _given_whole(self) -> None:
        """The part is called with the map that windows were cut from."""
        raise NotImplementedError


def _is_input(node: object) -> bool:
    return isinstance(node, fx.Node) and node.op == "placeholder"
