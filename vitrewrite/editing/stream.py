"""What is known of the tokens at each point of the residual stream, as passes change them.

Passes change tokens in any order. So what hangs on the sizes is put in once they are through: each
change of tokens is given the sizes before it, scores and pooling those at their place.
"""

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
    from .editor import Insertion
    from .value import Value


@dataclass(frozen=True)
class Tokens:
    """Facts about the sequence at one point.

    Attributes:
        prefix: tokens in front of the patches: class, registers, prompts.
        grid: height and width in patches, or None if the patches are no full grid.
        size: how many patches each token stands for, or None if each is one.
        joined: how many tokens joined the prefix since `size` was made.
        patches: tokens that are no prefix, of the size that the model was captured with.
    """

    prefix: int
    grid: tuple[int, int] | None
    size: Value | None = None
    joined: int = 0
    patches: int | None = None


@dataclass(frozen=True)
class Stated:
    """Whether the sizes of tokens count somewhere, as one clause has it.

    Attributes:
        use: `in_scores` (log size is added to the scores of a key) or `in_pooling` (means over
            tokens are weighed by size).
        chosen: whether the clause says so itself; else it is the default of its pass.
        option: of the pass, that says so.
    """

    use: str
    value: bool
    clause: ClauseRef
    chosen: bool
    option: str = ""

    def __str__(self) -> str:
        verb = "count" if self.value else "do not count"
        where = self.use.removeprefix("in_")
        why = "" if self.chosen else ", by default"
        line = f"line {self.clause.span.line}" if self.clause.span else self.clause.text
        return f"{verb} in {where} ({line}{why})"


@dataclass(frozen=True)
class Regrouping:
    """Where a clause makes the tokens fewer, or gives back those that were there at first.

    Attributes:
        made: what the clause put in for it.
        size: how many patches each token stands for behind it; None where all are given back.
    """

    position: int
    clause: ClauseRef
    made: Insertion
    size: Value | None = None


@dataclass
class Stream:
    """The facts by position: `2 * i` is the input of block i, `2 * i + 1` its middle.

    Attributes:
        stated: where sizes count, in the order of the clauses.
        read: where clauses went by which fact.
        reader: the clause that is carried out.
        pooled: whether the head reads more than single tokens.
        joins: by block where tokens joined the prefix, and how many.
        regroupings: where there are fewer patches from, or all of them again; see `in_turn`.
    """

    start: Tokens
    changes: list[tuple[int, dict[str, Any], ClauseRef]] = field(default_factory=list)
    stated: list[Stated] = field(default_factory=list)
    read: list[tuple[int, str, ClauseRef]] = field(default_factory=list)
    reader: Reader | None = None
    pooled: bool = False
    joins: list[tuple[int, int, int]] = field(default_factory=list)
    regroupings: list[Regrouping] = field(default_factory=list)

    @classmethod
    def of(cls, anatomy: Anatomy, root: nn.Module) -> Stream:
        """What holds before any pass, what earlier rewrites left in the model included."""
        known = anatomy.stream
        around = known.prefix_tokens + known.suffix_tokens
        patches = None if known.tokens is None else known.tokens - around
        stream = cls(
            Tokens(known.prefix_tokens, known.grid, patches=patches), pooled=known.readout is None
        )
        own = f"{anatomy.base}." if anatomy.base else ""
        for path, module in walk.named(root):
            if path.startswith(own) and is_inserted(module) and "grid" in _writes(module):
                clause = ClauseRef(-1, str(module.inserted_by), f"{path} of the model", None, {})
                index = [b.index for b in anatomy.blocks if path.startswith(f"{b.path}.")]
                stream.change(2 * min(index, default=0) + 1, clause, grid=None)
        return stream

    def at(self, position: int) -> Facts:
        """The facts at a position, for the clause that is carried out."""
        return Facts(self.known(position), position, self.reader)

    def whole(self, position: int) -> bool:
        """Whether the patches are a full grid at a position."""
        return self.known(position).grid is not None

    @property
    def unsized(self) -> bool:
        """Whether an earlier rewrite of the model merges tokens somewhere."""
        return any(clause.number < 0 for _, _, clause in self.changes)

    def known(self, position: int) -> Tokens:
        """The same, for what is no clause."""
        tokens = self.start
        for where, values, _ in sorted(self.changes, key=lambda c: c[0]):
            if where > position:
                break
            more = values.get("prefix", tokens.prefix) - tokens.prefix
            joined = 0 if "size" in values or tokens.size is None else tokens.joined + more
            facts = {name: value for name, value in values.items() if name != "fewer"}
            if "fewer" in values and tokens.patches is not None:
                facts["patches"] = tokens.patches - values["fewer"]
            tokens = replace(tokens, joined=joined, **facts)
        return tokens

    def change(self, position: int, clause: ClauseRef, **facts: Any) -> None:
        """From a position on, `facts` hold.

        Raises:
            RewriteError: VR417 if another clause went by such a fact further back already.
        """
        if self.reader is not None:
            self.reader.declare(facts, "writes")
        for where, fact, other in self.read:
            if self._holds(position, where, fact):
                continue
            if fact in facts and where >= position and other.number != clause.number:
                raise clause.error(
                    "VR417",
                    f"{clause.pass_name} changes the {fact} of the tokens in front of where "
                    f"{other.pass_name} has gone by it",
                    notes=[f"the other clause: {other.origin}"],
                    suggestion="write the clause that acts further in front first",
                )
        self.changes.append((position, facts, clause))

    def _holds(self, position: int, where: int, fact: str) -> bool:
        """Whether tokens are given back between two positions, so that the patches are whole."""
        back = (r.position for r in self.regroupings if r.size is None)
        return fact != "prefix" and any(position < place <= where for place in back)

    def regroup(
        self,
        position: int,
        clause: ClauseRef,
        made: Insertion,
        size: Value,
        patches: int | None,
        grid: tuple[int, int] | None = None,
    ) -> None:
        """From a position on there are fewer tokens, this grid or none, and these sizes.

        Raises:
            RewriteError: VR410 if another clause regroups them at the position.
        """
        self._expect_alone(position, clause)
        before = self.known(position).patches
        self.change(position, clause, grid=grid, size=size)
        if patches is None:
            self.changes[-1][1]["patches"] = None
        else:  # a clause further in front may come later, and leave fewer to this one
            self.changes[-1][1]["fewer"] = (before or patches) - patches
        self.regroupings.append(Regrouping(position, clause, made, size))

    def restore(self, position: int, clause: ClauseRef, made: Insertion) -> None:
        """From a position on there are all patches again, on their grid, each for itself.

        Raises:
            RewriteError: VR410 if another clause regroups them at the position.
        """
        self._expect_alone(position, clause)
        self.change(position, clause, grid=self.start.grid, size=None)
        self.changes[-1][1]["patches"] = self.start.patches
        self.regroupings.append(Regrouping(position, clause, made))

    def _expect_alone(self, position: int, clause: ClauseRef) -> None:
        """Raises VR410 if another clause regroups tokens at a position."""
        other = next((r.clause for r in self.regroupings if r.position == position), None)
        if other is not None:
            raise clause.error(
                "VR410",
                f"{clause.pass_name}: the tokens are regrouped there already",
                notes=[f"regrouped by: {other.origin}"],
            )

    @property
    def in_turn(self) -> list[Regrouping]:
        """The regroupings from the first block on."""
        return sorted(self.regroupings, key=lambda made: made.position)

    def state(self, use: str, value: bool, clause: ClauseRef, option: str) -> None:
        """A clause says whether sizes count; an option of it says the same.

        Raises:
            RewriteError: VR418 if another clause says the contrary.
        """
        new = Stated(use, value, clause, option in clause.options, option)
        known = [s for s in self.stated if s.use == use and s.clause.number != clause.number]
        for other in known if new.chosen else ():
            if other.chosen and other.value != value:
                raise clause.error(
                    "VR418",
                    f"'{clause.text}' and '{other.clause.text}' disagree on whether sizes of "
                    f"tokens count {use.replace('_', ' ')}",
                    option,
                    notes=[f"the other clause: {other.clause.origin}"],
                    suggestion="say it in one of them, or the same in both",
                )
        self.stated = [s for s in self.stated if s.use != use or s in known] + [new]

    def counts(self, use: str) -> Stated | None:
        """The statement that holds: the last that a clause makes itself, else the last default."""
        found = [s for s in self.stated if s.use == use]
        found = [s for s in found if s.chosen] or found
        return max(found, key=lambda s: s.clause.number, default=None)

    @property
    def holding(self) -> tuple[Stated, ...]:
        """The statements that hold, where there is something that sizes can count in."""
        uses = ("in_scores", *(("in_pooling",) if self.pooled else ())) if self.sizes() else ()
        return tuple(stated for use in uses if (stated := self.counts(use)) is not None)

    def sizes(self) -> list[tuple[int, Value, ClauseRef]]:
        """Where sizes are made, from the first block on."""
        return [(r.position, r.size, r.clause) for r in self.in_turn if r.size is not None]

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
