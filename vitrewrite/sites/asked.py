"""Rows that go through a block beside its tokens, and ask its attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import fx, nn

from ..anatomy.sites import Linear, Place
from ..editing.attended import is_per_query, softmax_of
from ..editing.editor import after
from ..editing.passing import Passage, PlacedError, passed_of
from ..editing.queries import FusedLayer, make_apart
from ..editing.value import Value
from ..tracing.leaves import is_inserted
from ..tracing.notes import HELD, HINT
from ..tracing.template import eliminate_dead_code
from .core import bias_of, operand_of
from .replaced import ReplacedAttention

if TYPE_CHECKING:
    from .block import BlockSite


@dataclass(frozen=True, eq=False)
class AskedAttention(ReplacedAttention):
    """Verbs by which rows that are no tokens read what an attention attends to."""

    def extend_q(self, module: nn.Module) -> Value:
        """`rows = module(x)` go through the block beside its tokens, x, and are not seen by them.

        They pass all that tokens pass, in the order of the block, and ask its attention; its keys
        and values are those of the tokens alone. What draws in training draws for them anew. What
        changes tokens in number is for tokens only, and weights that are read are the tokens'.

        Args:
            module: yields [batch, rows, channels] from the stream as it enters the block.

        Returns:
            The rows as they leave the block, [batch, rows, channels].

        Raises:
            RewriteError: VR410 if the block tells its tokens by where they stand, or by window.
        """
        (made,) = self._ask(module, (), 1)
        self.at_end(lambda: self.at_end(lambda: self._pass([made], frozen=False)))
        return Value(made)

    def ask(self, module: nn.Module, *values: Value) -> tuple[Value, Value, Value]:
        """`rows = module(x, *values)` go through the block, whose tokens nothing trains.

        As `extend_q`, but no gradient flows from the rows into keys and values, which are made
        apart from the tokens' queries: what is kept for backward is the rows' own, keys, values
        and the weights on them.

        Args:
            module: yields [batch, rows, channels]; of x it may read the shape alone.
            values: what it is given besides.

        Returns:
            The rows as they leave the block, what its attention has added to them, and what its
            feed-forward part has.

        Raises:
            RewriteError: VR410 as `extend_q`, or if the two do not follow each other; VR520 at the
                end, if a clause trains something in front of keys or values.
        """
        self._added  # noqa: B018 - refuses blocks that it cannot tell apart
        made = self._ask(module, values, 3)
        self.at_end(lambda: self.at_end(lambda: self._pass(made, frozen=True)))
        rows, attended, fed = map(Value, made)
        return rows, attended, fed

    def asked(self) -> tuple[Value, Value]:
        """Its keys and values, [batch, heads, tokens, width], for a module that attends to them.

        They are read without gradient, and made apart from the queries.

        Raises:
            RewriteError: VR410 if the attention is not over one sequence of tokens; VR520 at the
                end, if a clause trains something in front of them.
        """
        self._expect_one_sequence()
        core = self._core()
        for index in (1, 2):
            self._freeze(operand_of(core, index))
        self.at_end(lambda: self.at_end(self._part))
        places = [Place(self._unit, operand_of(core, index).name) for index in (1, 2)]
        keys, values = (Value(place).detached() for place in places)
        return keys, values

    # -- what becomes of rows -------------------------------------------------------------------

    @property
    def _added(self) -> tuple[tuple[Place, int], tuple[Place, int]]:
        """The residual sums of its block, each with which argument of it is added."""
        branches = self.block.block.branches
        found = {b.role.rpartition(".")[2]: (b.sum, b.index) for b in branches}
        if {*found} != {"attn_branch", "mlp_branch"} or len(branches) != 2:
            raise self.unfit("its block is not an attention and then a feed-forward part")
        return found["attn_branch"], found["mlp_branch"]

    def _expect_one_sequence(self) -> None:
        if not self.block.input.is_sequence or self.windowed or not self.over_tokens:
            raise self.unfit("it does not attend over one sequence of tokens")

    def _ask(self, module: nn.Module, values: tuple[Value, ...], count: int) -> list[Place]:
        """Puts a module in, and what stands for results of its rows until all clauses are through.

        Then they go behind what other clauses leave for the end: that may change what they pass.
        """
        block = self.block
        self._expect_one_sequence()
        if block.block.cuts:
            raise self.unfit("the block tells its tokens by where they stand")
        if _convolves(self.editor.root.get_submodule(block.path)):
            raise self.unfit("the block puts its tokens on their grid")
        place = self.editor.where(block.input.place)
        if place.unit != block.output.place.unit:
            raise self.unfit("the block is not one module")
        given = [value.read(self.editor, place.unit) for value in values]
        (rows,) = self.put(
            module,
            place.unit,
            [self.editor.node(place), *given],
            ("rows",),
            owner=block.path,
            name=self._stem,
        )
        last, made = self._last(block), list[Place]()
        for _ in range(count):
            with after(rows.graph, [rows, last]):
                passed = rows.graph.call_function(passed_of, (rows,))
            HINT.put(passed, "asked")
            if count > 1:
                HELD.put(passed, True)  # those that read the rest come later
            made.append(Place(place.unit, passed.name))
        return made

    def _last(self, block: BlockSite) -> fx.Node:
        """What the block itself yields, whatever was put behind it."""
        return self._itself(block.output.place)

    def _itself(self, place: Place) -> fx.Node:
        """The node of a place, not what was made of it since."""
        known = (n for n in self.editor.graph(place.unit).nodes if n.name == place.node)
        return next(known, None) or self.editor.node(place)

    def _pass(self, made: list[Place], frozen: bool) -> None:
        """Takes rows through the block as all clauses have left it."""
        block, core, unit = self.block, self._core(), made[0].unit
        nodes = {n.name: n for n in self.editor.graph(unit).nodes}
        passed = nodes.get(made[0].node)
        if passed is None:  # nobody reads them
            return
        if softmax_of(core) is not None:
            raise self.unfit("another clause makes its weights, for tokens that ask only")
        bias = bias_of(core)
        if bias is not None and is_per_query(bias):
            raise self.unfit("its scores have a bias or mask that differs between queries")
        rows, source = passed.args[0], self.editor.node(block.input.place)
        assert isinstance(rows, fx.Node)
        try:
            through = self._passage(core, unit, frozen).all_through(
                unit, {source: rows}, self._last(block)
            )
        except PlacedError as why:
            raise self.unfit(f"its rows cannot pass the block: {why}") from None
        added = self._added if len(made) > 1 else ()
        ends = [self._last(block), *map(self._branch_of, added)]
        for place, end, hint in zip(made, ends, ("asked", "attended", "fed"), strict=False):
            self._stand(place, through[end], hint)
        if frozen:
            for index in (1, 2):
                self._freeze(operand_of(core, index))
            self._part()

    def _passage(self, core: fx.Node, unit: str, frozen: bool) -> Passage:
        sizes = [self.editor.where(size.place) for _, size, _ in self.context.stream.sizes()]
        skipped = {self.editor.node(p).args[0] for p in sizes if p.unit == unit}
        return Passage(
            self.editor,
            core,
            self._unit,
            skipped,  # type: ignore[arg-type]
            self._fused(self.attention.q),
            frozen,
        )

    def _branch_of(self, added: tuple[Place, int]) -> fx.Node:
        found = self._itself(added[0]).args[added[1]]
        assert isinstance(found, fx.Node)
        return found

    def _stand(self, place: Place, result: fx.Node, hint: str) -> None:
        """What stood for a result becomes it."""
        HINT.put(result, hint)
        passed = self.editor.node(place)
        passed.replace_all_uses_with(result)
        passed.graph.erase_node(passed)
        self.editor.moved[place] = Place(place.unit, result.name)

    # -- keys and values ------------------------------------------------------------------------

    def _freeze(self, operand: fx.Node) -> None:
        self.editor.frozen.append((Place(self._unit, operand.name), self.clause))

    def _fused(self, part: Linear | None) -> FusedLayer | None:
        """The layer that makes its queries, keys or values, if it makes all of them."""
        layer = self.attention.qkv
        if layer is None or part is None or part.rows is None or part.call.unit != self._unit:
            return None
        call = self.editor.node(part.call)
        unit = self.editor.unit(self._unit)
        module = unit.get_submodule(str(call.target)) if call.op == "call_module" else None
        if not isinstance(module, nn.Linear):
            return None
        return FusedLayer(call, part.rows, self.heads, module.bias is not None)

    def _part(self) -> None:
        """Makes queries, keys and values of the tokens apart: a view keeps all that it is of."""
        found, core = self.attention, self._core()
        layers = [self._fused(part) for part in (found.q, found.k, found.v)]
        operands = [operand_of(core, index) for index in range(3)]
        for old, new in make_apart(layers, operands).items():
            self.editor.moved[Place(self._unit, old)] = Place(self._unit, new)
        eliminate_dead_code(core.graph)


def _convolves(module: nn.Module) -> bool:
    """Whether a part of the model, but for what passes put in, mixes tokens by where they are."""
    if is_inserted(module):
        return False
    found = isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    return found or any(map(_convolves, module.children()))
