"""Verbs of parts of a block that some tokens pass and others skip."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import fx, nn

from ..anatomy.sites import Place
from ..editing.routes import Stretch
from ..editing.value import Value, shape_of
from ..tracing.notes import HINT
from .base import BoundSite
from .entering import Entrance
from .helping import helped
from .rows import ActiveRows, Gated, PaddedRows, RowsBack

if TYPE_CHECKING:
    from .attention import AttentionSite


@dataclass(frozen=True, eq=False)
class RoutedSite(BoundSite):
    """A part y of a block that is made of its stream x."""

    @property
    def attends(self) -> bool:
        """Whether it holds an attention."""
        return self._attending is not None

    @property
    def prefix(self) -> int:
        """How many tokens stand in front of the patches in its stream."""
        return self.context.stream.at(self._position).prefix

    @property
    def pooled(self) -> bool:
        """Whether the head reads more than single tokens: it pools, or yields all of them."""
        return self.context.anatomy.stream.readout is None

    def decide(self, module: nn.Module, *values: Value, names: Sequence[str]) -> tuple[Value, ...]:
        """`names = module(x, *values)`: what a gate makes of the stream as the part reads it.

        Args:
            module: what is called; it makes something new.
            values: what it is given besides.
            names: of what it yields.

        Raises:
            RewriteError: VR410 if the part is not made of the stream that it is added to, or if
                that is no sequence of tokens that ends in its patches, VR402 for a block of which
                a branch has the pass.
        """
        self._expect_tokens()
        unit, x = self._start
        hints = tuple(names)
        given = [value.read(self.editor, unit) for value in values]
        owners = (self._delta_owner,)
        known = (i for i in self.editor.insertions if i.pass_name == self.pass_name)
        if any(i.owners == owners and i.clause != self.clause.number for i in known):
            raise self.twice  # at the block, and at a branch of it
        made = self.put(module, unit, (x, *given), hints, owners=owners, around=True)
        return tuple(Value(Place(unit, node.name)) for node in made)

    def asked(self, entry: str) -> Value:
        """A number [1]: 1 where the model runs as an entry of that name, 0 everywhere else.

        An entry is a method of the model: its program with that number another.
        """
        return Entrance(self).asked(entry)

    def appended(self, entry: str, value: Value) -> None:
        """The entry of a name yields `(output, values)`, to which a value is added.

        Values are in the order of the clauses.
        """
        Entrance(self).appended(entry, value)

    def route(self, gate: Value, *, keys: Value | None = None) -> None:
        """Tokens whose gate is 1 pass, those whose gate is 0 skip.

        A branch f becomes `x + gate * f(x)`, a block `x + gate * (block(x) - x)`. Where the part
        attends, `keys` [batch, tokens] is added to the scores of the keys, once all clauses are
        through: the logarithm of the gate by default, without gradient.

        Args:
            gate: [batch, tokens].
            keys: what its attention adds to the score of each key.
        """
        attn = self._attending
        if attn is not None:
            if not attn.over_tokens or attn.windowed:
                raise self.unfit("it does not attend over one sequence of tokens")
            attn.bias_keys(gate.detached().log() if keys is None else keys)
        self._gate(gate)

    def gather(self, rate: float, number: int = 0, *, fixed: bool = False) -> bool:
        """At lowering: only what passes is computed, by rows that a gate takes out of the tokens.

        Without attention the rows are those of all images; with one they are padded to the largest
        number in an image, and its keys masked.

        Args:
            rate: the share of the tokens behind the prefix that costs are told for.
            number: of the module, among those that share fractions of tokens.
            fixed: whether every image has that share, so that shapes are known.

        Returns:
            Whether it was done; where rows cannot pass by themselves a warning says why.
        """
        found = self._stretch()
        if found is None:
            return False
        if why := found.obstacle:
            self.warn(f"{self.pass_name} at '{self.role}' computes all tokens: {why}")
            return False
        padded = fixed or found.core is not None
        prefix = int(getattr(self.insertion.module, "prefix", 0))
        take: nn.Module = ActiveRows(prefix, rate, number)
        if padded:
            take = PaddedRows(prefix, rate, number, fixed)
        self._take(found, take, padded=padded)
        return True

    # -- nodes ----------------------------------------------------------------------------------

    @property
    def _start(self) -> tuple[str, fx.Node]:
        """The unit in which the part is made of its stream, and the stream there."""
        raise NotImplementedError

    @property
    def _position(self) -> int:
        """Of its stream."""
        raise NotImplementedError

    @property
    def _delta_owner(self) -> str:
        """What names the part in a delta."""
        raise NotImplementedError

    @property
    def _attending(self) -> AttentionSite | None:
        """The attention in the part, if there is one."""
        raise NotImplementedError

    def _gate(self, gate: Value) -> None:
        """What the part makes of the stream is gated."""
        raise NotImplementedError

    def _expect_tokens(self) -> None:
        """Raises VR410 unless the stream is a sequence of tokens that ends in its patches."""
        stream = self.context.anatomy.stream
        if len(shape_of(self._start[1])) != 3 or stream.layout != "sequence":
            raise self.unfit("its stream is no sequence of tokens")
        if stream.suffix_tokens:
            raise self.unfit("there are other tokens behind the patches")

    def _stretch(self) -> Stretch | None:
        """At lowering, what a gate lets tokens pass; None where they are taken out already."""
        unit, call = self.insertion.unit, self.call_of(self.insertion)
        gates = [call] + [u for u in call.users if u.target is operator.getitem]
        gated = next((u for g in gates for u in g.users if self._is_gated(unit, u)), None)
        if gated is None:
            return None
        x, y = call.args[0], gated.args[0]
        assert isinstance(x, fx.Node)
        assert isinstance(y, fx.Node)
        attn = self._attending
        core = None if attn is None else self.editor.where(attn.attention.core)
        return Stretch(self.editor, unit, x, tuple(gates), gated, core)

    def _is_gated(self, unit: str, node: fx.Node) -> bool:
        if node.op != "call_module":
            return False
        return isinstance(self.editor.unit(unit).get_submodule(str(node.target)), Gated)

    def _take(self, found: Stretch, take: nn.Module, *, padded: bool) -> None:
        """Rows in place of tokens, from where the gate is made to where it was multiplied."""
        gated, x = found.gated, found.x
        y, gate = gated.args[:2]
        onto = len(gated.args) > 2
        hints = ("rows", "index", "active")[: 2 + padded]
        rows = self._call(found.unit, take, "rows", (x, gate), hints)
        found.enter(rows[0], rows[2] if padded else None)
        given = (y, rows[1], rows[2] if padded else None, x)
        (back,) = self._call(
            found.unit, RowsBack(onto), "back", given, (str(HINT.get(gated) or "y"),)
        )
        gated.replace_all_uses_with(back)
        self.editor.moved[Place(found.unit, gated.name)] = Place(found.unit, back.name)
        gated.graph.erase_node(gated)

    def _call(
        self, unit: str, module: nn.Module, name: str, args: Sequence[object], hints: Sequence[str]
    ) -> tuple[fx.Node, ...]:
        """Calls a module without state that belongs to no pass."""
        nodes = [node if isinstance(node, fx.Node) else None for node in args]
        return helped(self, module, (unit, self.path, f"{self._stem}_{name}"), nodes, hints)
