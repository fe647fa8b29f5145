"""Verbs of the points of the residual stream."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from ..anatomy.sites import Place
from ..editing import wiring
from ..editing.editor import after
from ..editing.facts import Facts
from ..editing.slices import ahead
from ..editing.value import Value
from ..tracing.notes import HELD, HINT, VALUE
from .room import FirstTokens, WithoutTokens

if TYPE_CHECKING:
    from .block import BlockSite


@dataclass(frozen=True, eq=False)
class Point:
    """A point of the residual stream: what is changed there, all that follows sees."""

    site: BlockSite
    place: Place
    position: int

    @property
    def value(self) -> Value:
        """The stream here, as the clauses leave it, for what reads it elsewhere."""
        return Value(self.place)

    @property
    def tokens(self) -> Facts:
        """What is known of the tokens here."""
        return self.site.context.stream.at(self.position)

    @property
    def grid_size(self) -> tuple[Value, Value]:
        """Height and width in patches while the model runs: numbers that follow the image.

        For a module that takes them as arguments; `tokens.grid` is that of one size only.
        """
        stream = self.site.context.stream
        found = None if stream.reader is None else stream.reader.sizes(self.position)
        if found is None or not stream.whole(self.position):
            raise self.site.unfit("no full grid of patches is left there")
        if stream.known(self.position).grid != stream.start.grid:
            raise self.site.unfit("the grid there is pooled, and does not follow the image")
        return Value(found[0]), Value(found[1])

    @property
    def patches(self) -> Value:
        """The patches alone, as a map [batch, height, width, channels].

        Tokens of the prefix are left out, however many there are; the map follows the image.

        Raises:
            RewriteError: VR410 if the stream is no sequence, if no full grid of patches is left in
                it, or if something stands behind them.
        """
        stream = self.site.context.anatomy.stream
        if not self.is_sequence or stream.suffix_tokens:
            what = "its stream is no sequence that ends in its patches"
            raise self.site.unfit(what)
        editor, sizes = self.site.editor, self.grid_size
        units = (editor.where(self.place).unit, sizes[0].place.unit)
        unit = wiring.common(editor, units)
        x, *grid = (value.read(editor, unit) for value in (self.value, *sizes))
        with after(editor.graph(unit), [x, *grid]):
            return Value(Place(unit, _as_map(x, grid).name))

    @property
    def is_sequence(self) -> bool:
        """Whether the stream is [batch, tokens, channels]."""
        stream = self.site.context.anatomy.stream
        return stream.layout == "sequence" and self.site.context.anatomy.blocks[0].dim > 0

    def insert(
        self, module: nn.Module, *values: Value, also: Sequence[str] = ()
    ) -> tuple[Value, ...]:
        """`x = module(x, *values)`; with `also`, `x, *also = module(x, *values)`.

        Returns:
            The stream behind the module, then what it yields besides.
        """
        editor = self.site.editor
        place = editor.where(self.place)
        given = [value.read(editor, place.unit) for value in values]
        node = editor.node(place)
        hints = (str(HINT.get(node) or "x"), *also)
        results = self.site.put(module, place.unit, (node, *given), hints, changed=(0,))
        editor.stacks.setdefault(self.place, []).append(editor.insertions[-1])
        self._passes(node, results[0], results[0].args[0] if also else results[0])
        return tuple(Value(Place(place.unit, r.name)) for r in results)

    def look(self, module: nn.Module, *values: Value, name: str) -> Value:
        """`name = module(x, *values)`: something new, made of the stream as it is here."""
        return self.look_all(module, *values, names=(name,))[0]

    def look_all(
        self, module: nn.Module, *values: Value, names: Sequence[str], by_loss: bool = False
    ) -> tuple[Value, ...]:
        """The same for a module that yields several values.

        Args:
            module: what is called.
            values: what it is given besides.
            names: of what it yields.
            by_loss: whether what it yields trains it by a loss of the pass's procedure alone.
        """
        place = self.site.editor.where(self.place)
        given = [value.read(self.site.editor, place.unit) for value in values]
        node = self.site.editor.node(place)
        made = self.site.put(module, place.unit, (node, *given), tuple(names))
        if by_loss:
            self.site.editor.by_loss.append(self.site.editor.insertions[-1].path)
        return tuple(Value(Place(place.unit, each.name)) for each in made)

    def follow(self, value: Value) -> None:
        """What reads the stream behind the blocks of the clause reads `value` instead."""
        editor, unit = self.site.editor, self.site._above
        value.read(editor, unit)  # which may have a call yield several values
        old, new = self.value.read(editor, unit), value.read(editor, unit)
        made_of, queue = {new}, [new]
        while queue:
            fresh = set(queue.pop().all_input_nodes) - made_of
            made_of |= fresh
            queue += fresh
        old.replace_all_uses_with(new, delete_user_cb=lambda user: user not in made_of)
        editor.moved[editor.where(self.place)] = Place(unit, new.name)

    def _passes(self, old: fx.Node, new: fx.Node, call: Any) -> None:
        """All that read the stream here read what a call makes of it, but what it is made of."""
        editor = self.site.editor
        place = editor.where(self.place)
        made_of = ahead([call])
        old.replace_all_uses_with(new, delete_user_cb=lambda user: user not in made_of)
        editor.moved[place] = Place(place.unit, new.name)

    def join(self, module: nn.Module, *values: Value, start: int, count: int) -> None:
        """`x = module(x, *values)`, which puts `count` tokens behind the first `start` of a prefix.

        At the first site of the clause they join what is there, and all blocks from that on make
        room for them. At the others the module puts new ones, which may be more or fewer, in the
        place of those that are there: as many as `block.joined` says.

        Raises:
            RewriteError: VR410 if the stream is no sequence of tokens, or if another clause has
                put tokens in front of the patches.
        """
        if not self.is_sequence:
            raise self.site.unfit("its stream is no sequence of tokens")
        if other := self.site.cause("prefix"):
            notes = [f"put there by: {other}"]
            raise self.site.unfit("tokens joined the prefix already", notes=notes)
        prefix, more = self.tokens.prefix, count - self.site.joined
        self.insert(module, *values)
        if more:
            self.become(prefix=prefix + more)
            for block in (self.site, *self.site.following):
                if block.has_patches:
                    block.change_room(start, more)

    def leave(self, start: int, count: int) -> None:
        """`count` tokens behind the first `start` of the prefix, which had joined, leave it.

        The blocks behind have no room for them any more.
        """
        site, prefix = self.site, self.tokens.prefix
        self._without(WithoutTokens(start, count))
        self.become(prefix=prefix - count)
        for block in site.following:
            if block.has_patches and 2 * block.index >= self.position:
                block.close_room(start, count)

    def leave_behind(self, count: int) -> None:
        """All but the first `count` tokens leave the stream, in front of a head that pools."""
        self._without(FirstTokens(count))

    def _without(self, module: nn.Module) -> None:
        site = self.site
        place = site.editor.where(self.place)
        node = site.editor.node(place)
        hint = str(HINT.get(node) or "x")
        made = site.help(module, place.unit, (node,), f"{site._stem}_out", hint)
        self._passes(node, made, made)

    def regroup(
        self,
        module: nn.Module,
        *values: Value,
        patches: int | None,
        grid: tuple[int, int] | None = None,
    ) -> None:
        """`x, size = module(x, *values, size)`: from here on there are fewer tokens.

        `size` is [batch, tokens], how many patches each token stands for. The module is called
        without it where no other regroups tokens in front of it: each token is one patch there.

        A module has `traced: bool = False` among the arguments of its constructor. Where that is
        set, because something needs it, it yields `x, size, into, kept`: `into` [batch, tokens in
        front], in which token behind it each is, or -1 if it is dropped, and `kept` [batch, tokens
        behind], whose position each takes; both long, prefix included. The prefix stays in front.

        Args:
            module: what makes the tokens fewer.
            values: what it is given besides.
            patches: how many tokens that are no prefix it leaves, of the size that the model was
                captured with; None if that hangs on the image.
            grid: height and width, if what it leaves lies on one; it is that of one size only.

        Raises:
            RewriteError: VR410 if tokens are regrouped here already, or in the model as it was.
        """
        self.expect_sizes()
        stream = self.site.context.stream
        if stream.reader is not None:
            stream.reader.declare(["size"], "reads")
        _, size = self.insert(module, *values, also=("size",))
        HELD.put(self.site.editor.node(size.place), True)
        made = self.site.editor.insertions[-1]
        stream.regroup(self.position, self.site.clause, made, size, patches, grid)

    def restore(self, module: nn.Module) -> None:
        """`x = module(x, into)`: from here on all patches of the model as it was are there again.

        `into` is [batch, patches], in which of the tokens behind the prefix each patch is, or -1
        if it was dropped. Their grid is whole from here on, and each stands for itself.

        Raises:
            RewriteError: VR410 if tokens are regrouped here already, or in the model as it was.
        """
        self.expect_sizes()
        self.insert(module)
        made = self.site.editor.insertions[-1]
        self.site.context.stream.restore(self.position, self.site.clause, made)

    def expect_sizes(self) -> None:
        """Raises VR410 if tokens of the model as it was stand for numbers of patches not known."""
        if self.site.context.stream.unsized:
            raise self.site.unfit("the model merges tokens already, of sizes that are not known")

    def state(self, use: str, value: bool, option: str) -> None:
        """Says whether sizes of tokens count, for the model as a whole; see `BoundSite.state`."""
        self.site.state(use, value, option)

    def become(self, **facts: object) -> None:
        """From here on, these facts hold of the tokens."""
        self.site.context.stream.change(self.position, self.site.clause, **facts)


def _as_map(x: fx.Node, grid: Sequence[fx.Node]) -> fx.Node:
    """`x[:, -height * width :].unflatten(1, (height, width))`."""
    graph, (height, width) = x.graph, grid
    count = graph.call_function(operator.mul, (height, width))
    first = graph.call_function(operator.neg, (count,))
    VALUE.put(count, VALUE.of(height) * VALUE.of(width))
    VALUE.put(first, -VALUE.of(count))
    rows = graph.call_function(operator.getitem, (x, (slice(None), slice(first, None))))
    HINT.put(rows, "patches")
    made = graph.call_method("unflatten", (rows, 1, (height, width)))
    HINT.put(made, "patches")
    return made
