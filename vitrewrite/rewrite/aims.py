"""`P(macs=13.4G)`: the options of a clause that come nearest to a cost, found by carrying them out.

What a merge costs hangs on the model, on the other clauses and on what rounds, so the cost of a
choice is counted on the rewritten model, on meta, and no formula is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from torch import nn

from ..anatomy.sites import Anatomy
from ..catalog.declare import Pass, Rung
from ..editing.clause import ClauseRef
from ..errors import RewriteError
from ..language.expressions import Literal
from ..language.model import Clause, Spec
from ..language.parse import parse_text
from ..language.selectors import Option, Selector
from ..language.source import SpecSource
from ..language.values import is_number
from ..selection.select import Selection
from ..text import giga
from .passes import method_of

OPTION = "macs"
_SLACK = 0.005
"""How far beyond its ends a range of costs is still met, as a share: what is asked is rounded."""


@dataclass(frozen=True)
class Aim:
    """A cost that a clause was to meet, and what was chosen for it.

    Attributes:
        clause: as the spec has it, and as it is carried out in `chosen`.
        asked: MACs of the model, and those that it has in `reached`.
        line: of the clause.
    """

    clause: str
    chosen: str
    asked: float
    reached: int
    line: int | None

    def to_json(self) -> dict[str, Any]:
        """The choice as data."""
        return {"clause": self.clause, "chosen": self.chosen, "asked": self.asked,
                "reached": self.reached, "line": self.line}  # fmt: skip

    def __str__(self) -> str:
        line = f" (line {self.line})" if self.line else ""
        gets = f"'{self.chosen}' has {giga(self.reached)}"
        return f"MACs asked for{line}: {giga(round(self.asked))}; {gets}"


def met(
    spec: Spec, root: nn.Module, anatomy: Callable[[], Anatomy], cost: Callable[[Spec], int]
) -> tuple[Spec, tuple[Aim, ...]]:
    """The spec with a choice in place of the cost that a clause is to meet.

    Args:
        spec: what is to be carried out.
        root: the captured model.
        anatomy: its places.
        cost: MACs of the model with a spec carried out.

    Raises:
        RewriteError: VR470 for several such clauses, VR471 for a cost that no choice comes near,
            and what else a choice is refused for.
    """
    aiming = [i for i, c in enumerate(spec.clauses) if _asked(c)]
    if not aiming:
        return spec, ()
    if len(aiming) > 1:
        first, second = (spec.clauses[i] for i in aiming[:2])
        raise RewriteError(
            "VR470",
            f"'{second}' and '{first}' both aim at a cost of the model",
            span=second.span,
            suggestion="state the options of one of them",
        )
    (number,) = aiming
    clause = spec.clauses[number]
    assert clause.sites is not None
    roles = [site.role for site in Selection(anatomy(), root).sites(clause.sites)]
    stream = anatomy().stream
    front = stream.prefix_tokens + stream.suffix_tokens
    ladder = method_of(clause).ladder(len(roles), max((stream.tokens or 0) - front, 0))
    clauses = [_with(clause, choice, roles) for choice in ladder]
    head, tail = spec.clauses[:number], spec.clauses[number + 1 :]
    rungs = [replace(spec, clauses=(*head, made, *tail)) for made in clauses]
    asked = _asked(clause)
    place, reached = _nearest(rungs, asked, cost, clause)
    aim = Aim(str(clause), str(clauses[place]), asked, reached, clause.span.line)
    return rungs[place], (aim,)


def _asked(clause: Clause) -> float:
    """The cost that a clause aims at; 0 for none."""
    from .. import catalog

    value = None if clause.use is None else clause.use.values.get(OPTION)
    if clause.use is None or not is_number(value):
        return 0.0
    return float(value) if catalog.load(clause.use.key).ladder is not Pass.ladder else 0.0


def _nearest(
    rungs: Sequence[Spec], asked: float, cost: Callable[[Spec], int], clause: Clause
) -> tuple[int, int]:
    """Which of the rungs, the most expensive first, costs what is asked as nearly as one can."""
    known = cache(lambda place: cost(rungs[place]))
    low, high = 0, len(rungs) - 1
    if high < 0:
        raise _out_of_reach(clause, "there is nothing to choose from", ())
    ends = known(low), known(high)
    if not ends[1] * (1 - _SLACK) <= asked <= ends[0] * (1 + _SLACK):
        raise _out_of_reach(clause, f"{giga(round(asked))} MACs are out of reach", ends)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if known(middle) >= asked else (low, middle)
    place = min((low, high), key=lambda p: abs(known(p) - asked))
    return place, known(place)


def _out_of_reach(clause: Clause, what: str, ends: Sequence[int]) -> RewriteError:
    assert clause.use is not None
    spans = {option.name: option.span for option in clause.use.options}
    ref = ClauseRef(-1, clause.use.name, str(clause), clause.span, spans)
    notes = [f"within reach: {giga(ends[1])} to {giga(ends[0])}"] if ends else []
    return ref.error("VR471", f"{clause.use.name}: {what}", OPTION, notes=notes)


def _with(clause: Clause, choice: Rung, roles: Sequence[str]) -> Clause:
    """A clause with a choice in place of the cost that it states."""
    assert clause.use is not None
    (span,) = (o.span for o in clause.use.options if o.name == OPTION)
    kept = tuple(o for o in clause.use.options if o.name != OPTION and o.name not in choice.options)
    made = tuple(Option(name, Literal(value, span), span) for name, value in choice.options.items())
    sites = clause.sites if choice.at is None else _selector(roles[choice.at])
    return replace(clause, use=replace(clause.use, options=(*kept, *made)), sites=sites)


def _selector(role: str) -> Selector | None:
    """What selects one site, as the language has it."""
    made: Clause = parse_text(SpecSource("<choice>", f"freeze {role}"), "statement")
    return made.sites
