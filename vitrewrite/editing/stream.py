"""What is known of the tokens at each point of the residual stream, as passes change them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from .. import catalog
from ..anatomy.sites import Anatomy
from ..errors import VitrewriteError
from ..tracing import walk
from ..tracing.leaves import is_inserted
from .clause import ClauseRef
from .facts import Facts, Reader

if TYPE_CHECKING:
    from .value import Value


@dataclass(frozen=True)
class Tokens:
    """Facts about the sequence at one point.

    Attributes:
        prefix: tokens in front of the patches: class, registers, prompts.
        grid: height and width in patches, or None if the patches are no full grid.
        size: how many patches each token stands for, or None if each is one.
        joined: how many tokens joined the prefix since `size` was made.
    """

    prefix: int
    grid: tuple[int, int] | None
    size: Value | None = None
    joined: int = 0


@dataclass
class Stream:
    """The facts by position: `2 * i` is the input of block i, `2 * i + 1` its middle."""

    start: Tokens
    changes: list[tuple[int, dict[str, Any], ClauseRef]] = field(default_factory=list)
    reader: Reader | None = None  # the clause that is carried out

    @classmethod
    def of(cls, anatomy: Anatomy, root: nn.Module) -> Stream:
        """What holds before any pass, what earlier rewrites left in the model included."""
        known = anatomy.stream
        stream = cls(Tokens(known.prefix_tokens, known.grid))
        for path, module in walk.named(root):
            if is_inserted(module) and "grid" in _writes(module):
                clause = ClauseRef(-1, str(module.inserted_by), f"{path} of the model", None, {})
                index = [b.index for b in anatomy.blocks if path.startswith(f"{b.path}.")]
                stream.change(2 * min(index, default=0) + 1, clause, grid=None)
        return stream

    def at(self, position: int) -> Facts:
        """The facts at a position, for the clause that is carried out."""
        return Facts(self._known(position), position, self.reader)

    def whole(self, position: int) -> bool:
        """Whether the patches are a full grid at a position."""
        return self._known(position).grid is not None

    def _known(self, position: int) -> Tokens:
        tokens = self.start
        for where, values, _ in sorted(self.changes, key=lambda c: c[0]):
            if where > position:
                break
            more = values.get("prefix", tokens.prefix) - tokens.prefix
            joined = 0 if "size" in values or tokens.size is None else tokens.joined + more
            tokens = replace(tokens, joined=joined, **values)
        return tokens

    def change(self, position: int, clause: ClauseRef, **facts: Any) -> None:
        """From a position on, `facts` hold."""
        if self.reader is not None:
            self.reader.declare(facts, "writes")
        self.changes.append((position, facts, clause))

    def cause(self, position: int, fact: str) -> ClauseRef | None:
        """The clause that made a fact what it is at a position."""
        causes = [(p, c) for p, values, c in self.changes if p <= position and fact in values]
        return max(causes, key=lambda pair: pair[0])[1] if causes else None


def _writes(module: nn.Module) -> tuple[str, ...]:
    """The facts that an inserted module changes, told by its pass."""
    try:
        return catalog.signature(str(module.inserted_by)).writes
    except VitrewriteError:  # a module of a pass that is not installed
        return ()
