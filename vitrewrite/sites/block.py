"""Verbs of residual blocks and of the points of the stream that runs through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..anatomy.sites import Block, Place
from ..editing.cuts import lengthen
from ..editing.facts import Facts
from ..editing.leaving import cannot_leave_out, leave_out
from ..editing.value import Value
from ..tracing.leaves import is_inserted
from ..tracing.notes import HELD, HINT
from .attention import AttentionSite
from .base import BoundSite


@dataclass(frozen=True, eq=False)
class BlockSite(BoundSite):
    """A residual block: `input` + branch = `mid`, + branch = `output`."""

    block: Block

    @property
    def role(self) -> str:
        """The site in words."""
        return self.block.role

    @property
    def path(self) -> str:
        """The module that the block is."""
        return self.block.path

    @property
    def dim(self) -> int:
        """Channels of the stream."""
        return self.block.dim

    @property
    def stem_dim(self) -> int:
        """Channels of the stream as it enters the first block."""
        return self.context.anatomy.blocks[0].dim

    @property
    def index(self) -> int:
        """Which block it is."""
        return self.block.index

    @property
    def has_attention(self) -> bool:
        """Whether it has an attention."""
        return self.block.attn is not None

    @property
    def attn(self) -> AttentionSite:
        """Its attention."""
        if self.block.attn is None:
            raise self.unfit("the block has no attention")
        return AttentionSite(self.context, self.block.attn, self.block)

    @property
    def following(self) -> tuple[BlockSite, ...]:
        """The blocks behind this one."""
        behind = (b for b in self.context.anatomy.blocks if b.index > self.index)
        return tuple(BlockSite(self.context, b) for b in behind)

    def leave_out(self) -> None:
        """Takes the block out: what follows reads the stream as it enters the block.

        Raises:
            RewriteError: VR410 if the block changes the stream's shape, or cannot be told apart.
        """
        if reason := cannot_leave_out(self.editor, self.block):
            raise self.unfit(reason)
        leave_out(self.editor, self.block)

    def cause(self, fact: str) -> str | None:
        """Another clause that changed a fact of the tokens up to here, in words."""
        cause = self.context.stream.cause(2 * self.index + 1, fact)
        return None if cause is None or cause.number == self.clause.number else cause.origin

    @property
    def tokens(self) -> int | None:
        """How many tokens its own stream has in the model as it was, if it is a sequence."""
        return self.block.tokens

    def lengthen_prefix(self, start: int, count: int) -> None:
        """From token `start` on there are `count` more tokens in front of the patches here.

        Where the block cuts its tokens at a fixed number, such as for rotary positions, which are
        for patches only, it cuts them `count` later; fewer tokens are told as a negative `count`.
        Modules of passes in it that keep the length of the prefix, as `prefix`, keep the new one.
        """
        if self.context.insertion is None:
            self.context.stream.joins.append((self.index, start, count))
        for cut in self.block.cuts:
            lengthen(self.editor, cut, start, count)
        module: Any
        for module in self.editor.root.get_submodule(self.path).modules():
            if is_inserted(module) and isinstance(getattr(module, "prefix", None), int):
                module.prefix += count

    @property
    def own_prefix(self) -> int:
        """How many tokens stand in front of the patches in the model as it was."""
        return self.context.anatomy.stream.prefix_tokens

    @property
    def input(self) -> Point:
        """Where the stream enters."""
        return Point(self, self.block.input, 2 * self.index)

    @property
    def mid(self) -> Point:
        """Behind the attention, before the feed-forward part."""
        if self.block.mid is None:
            raise self.unfit("its attention and its feed-forward part run side by side")
        return Point(self, self.block.mid, 2 * self.index + 1)

    @property
    def output(self) -> Point:
        """Where the stream leaves."""
        return Point(self, self.block.output, 2 * self.index + 2)


@dataclass(frozen=True, eq=False)
class Point:
    """A point of the residual stream: what is changed there, all that follows sees."""

    site: BlockSite
    place: Place
    position: int

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
        return Value(found[0]), Value(found[1])

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
        made = results[0].args[0] if also else results[0]
        node.replace_all_uses_with(results[0], delete_user_cb=lambda user: user is not made)
        moved = Place(place.unit, results[0].name)
        editor.moved[place] = moved
        return tuple(Value(Place(place.unit, r.name)) for r in results)

    def regroup(self, module: nn.Module, *values: Value, patches: int) -> None:
        """`x, size = module(x, *values, size)`: from here on there are fewer tokens, and no grid.

        `size` is [batch, tokens], how many patches each token stands for. The module is called
        without it where no other regroups tokens in front of it: each token is one patch there.

        Args:
            module: what makes the tokens fewer.
            values: what it is given besides.
            patches: how many tokens that are no prefix it leaves, of the size that the model was
                captured with.

        Raises:
            RewriteError: VR410 if tokens are regrouped here already, or in the model as it was.
        """
        self.expect_sizes()
        stream = self.site.context.stream
        if stream.reader is not None:
            stream.reader.declare(["size"], "reads")
        _, size = self.insert(module, *values, also=("size",))
        HELD.put(self.site.editor.node(size.place), True)
        stream.regroup(self.position, self.site.clause, size, patches)

    def expect_sizes(self) -> None:
        """Raises VR410 if tokens of the model as it was stand for numbers of patches not known."""
        if self.site.context.stream.unsized:
            raise self.site.unfit("the model merges tokens already, of sizes that are not known")

    def state(self, use: str, value: bool, option: str) -> None:
        """Says whether sizes of tokens count, for the model as a whole.

        Args:
            use: `in_scores`, where log size is added to the scores of keys, or `in_pooling`, where
                means over tokens are weighed by size.
            value: whether they do.
            option: of the pass, that says so.

        Raises:
            RewriteError: VR418 if another clause says the contrary.
        """
        self.site.context.stream.state(use, value, self.site.clause, option)

    def become(self, **facts: object) -> None:
        """From here on, these facts hold of the tokens."""
        self.site.context.stream.change(self.position, self.site.clause, **facts)
