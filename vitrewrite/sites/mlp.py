"""The feed-forward part of a block, as a pass gets it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from ..anatomy.sites import Linear, Place
from ..editing import wiring
from ..editing.value import Value
from ..tracing.notes import HINT
from .linear import LinearSite
from .units import UnitsSite


@dataclass(frozen=True, eq=False)
class MlpSite(UnitsSite):
    """A feed-forward part, fc2(act(fc1(x))), or a gated one."""

    @property
    def role(self) -> str:
        """The site in words."""
        return self.mlp.role

    @property
    def path(self) -> str:
        """The module that holds its last layer."""
        return self.fc2.path

    @property
    def dim(self) -> int:
        """Channels of what it yields."""
        return self._layer(self.mlp.fc2).out_features

    @property
    def hidden(self) -> int:
        """Hidden units."""
        return self._layer(self.mlp.fc1).out_features

    @property
    def fc1(self) -> LinearSite:
        """Its first layer."""
        return LinearSite(self.context, (self._layer(self.mlp.fc1),))

    @property
    def activated(self) -> Value:
        """Its hidden units behind their activation, [batch, tokens, hidden].

        Raises:
            RewriteError: VR410 if the activation is no step of its own, as in a fused MLP.
        """
        if self.mlp.act is None:
            raise self.unfit("its activation is no step of its own")
        return Value(self.mlp.act)

    def become(
        self, module: nn.Module, *values: Value, keep: bool = True, beside: bool = False
    ) -> None:
        """`y = module(x, *tensors, *values)` instead of `y = mlp(x)`.

        It keeps its parameters under their names, and its own forward hands them in: weight and
        bias of fc1 and fc2, None for a bias that is not there. The module owns no copy.

        Args:
            module: yields what x is a changed form of: `changes = (0,)`.
            values: what it is given besides.
            keep: if not, the feed-forward part is taken out, and it is `module(x, *values)`.
            beside: whether it runs still: `y = module(x, mlp(x), *tensors, *values)`, with
                `changes = (1,)`. Other clauses at its layers stay what they are.

        Raises:
            RewriteError: VR410 if it is gated or no module of its own, VR412 if another clause is
                about what it does, which it does no more.
        """
        if self.mlp.gate is not None:
            raise self.unfit("it is gated")
        if keep or beside:
            self._keep(self._layers, module, values, beside=beside)
            return
        above, calls = wiring.caller(self.editor, self._own_unit)
        call = self.editor.node(Place(above, calls[0].name))
        x = call.args[0]
        assert isinstance(x, fx.Node)
        given = [x, *(value.read(self.editor, above) for value in values)]
        owner, _, name = self.path.rpartition(".")
        hint = str(HINT.drop(call) or name)
        new = f"{name}_{self._stem}"
        (made,) = self.put(module, above, given, (hint,), owner=owner, name=new, changed=(0,))
        call.replace_all_uses_with(made)
        call.graph.erase_node(call)
        self.editor.take_out(self.path, self.clause)

    @property
    def _layers(self) -> tuple[Linear | None, ...]:
        """Its two layers."""
        return self.mlp.fc1, self.mlp.fc2

    @property
    def _own_unit(self) -> str:
        layers = [s for s in (self.mlp.fc1, self.mlp.fc2) if s is not None]
        if {self.editor.where(s.call).unit for s in layers} != {self.path}:
            raise self.unfit("it is no module of its own")
        if len(wiring.caller(self.editor, self.path)[1]) > 1:
            raise self.unfit(f"'{self.path}' runs several times")
        return self.path
