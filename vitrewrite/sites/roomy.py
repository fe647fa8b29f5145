"""Room in a block for tokens that join the prefix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..anatomy.sites import Block
from ..editing.cuts import lengthen
from ..tracing.leaves import is_inserted
from .attention import AttentionSite
from .room import BiasWithRoom, WithoutTokens
from .routing import RoutedSite


@dataclass(frozen=True, eq=False)
class RoomySite(RoutedSite):
    """A block, as one that has more tokens, or fewer again, in front of its patches."""

    block: Block

    @property
    def path(self) -> str:
        """The module that the block is."""
        return self.block.path

    def make_room(self, start: int, count: int) -> None:
        """From token `start` on there are `count` more tokens in front of the patches here.

        They have no positions. Where the block cuts its tokens at a fixed number, such as for
        rotary positions, which are for patches only, it cuts them `count` later, and a bias of
        scores is zero for them. Modules of passes in it that keep the length of the prefix, as
        `prefix`, keep the new one.
        """
        self._lengthen(start, count)
        self.context.stream.joins.append((self.block.index, start, count))
        if self.block.attn is not None:
            AttentionSite(self.context, self.block.attn, self.block).make_room(start, count)

    @property
    def joined(self) -> int:
        """How many tokens joined those in front of the patches, as the block gets them."""
        return (
            self.context.stream.known(2 * self.block.index).prefix
            - self.context.anatomy.stream.prefix_tokens
        )

    def change_room(self, start: int, more: int) -> None:
        """From token `start` on there are `more` tokens in front of the patches than there were.

        A negative number is of tokens that went.
        """
        if more > 0:
            self.make_room(start, more)
            return
        self._lengthen(start, more)
        joins = self.context.stream.joins
        known = [count for index, at, count in joins if (index, at) == (self.block.index, start)]
        joins[:] = [j for j in joins if j[:2] != (self.block.index, start)]
        joins.append((self.block.index, start, sum(known) + more))
        for path in self.editor.helpers:
            module = self.editor.root.get_submodule(path)
            if isinstance(module, BiasWithRoom) and path.startswith(f"{self.path}."):
                taken = min(module.count, -more)
                module.count, more = module.count - taken, more + taken

    def close_room(self, start: int, count: int) -> None:
        """`make_room` is undone, for tokens that do not run through the block any more."""
        self._lengthen(start, -count)
        if self.context.insertion is None:
            self.context.stream.joins.remove((self.block.index, start, count))
        for path in list(self.editor.helpers):
            module = self.editor.root.get_submodule(path)
            inside = f"{path}.".startswith(f"{self.path}.")
            if inside and isinstance(module, (BiasWithRoom, WithoutTokens)):
                self.bypass(path)
                self.editor.without_helper(path)

    def take_back(self, start: int, count: int) -> None:
        """At lowering: the `count` tokens that the module put behind `start` others are not put."""
        self.drop()
        self.close_room(start, count)

    def _lengthen(self, start: int, count: int) -> None:
        """Moves where tokens are cut; fewer tokens are told as a negative `count`."""
        for cut in self.block.cuts:
            lengthen(self.editor, cut, start, count)
        module: Any
        for module in self.editor.root.get_submodule(self.path).modules():
            if is_inserted(module) and isinstance(getattr(module, "prefix", None), int):
                module.prefix += count
