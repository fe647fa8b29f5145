"""What passes claim, checked clause by clause.

A claim is checked where the pass makes it: of each module that a clause put in, not of the model as
a whole, where the error of one clause could hide behind another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from ..catalog.signatures import CLAIMS
from ..rewrite.claims import EXACT
from ..rewrite.initial import draw
from ..tracing.unit import duplicate
from .check import Check
from .numeric import given, over_largest
from .reference import START, Runs
from .runs import Situation
from .stages import image, interpreted

if TYPE_CHECKING:
    from ..editing.clause import ClauseRef
    from ..editing.editor import Insertion
    from ..rewrite.rewritten import Rewritten

MEASURED = 1e-3
"""Largest error of what `errors` of a pass measures."""


# -- the same output at initialisation ------------------------------------------------------------


def identities(runs: Runs) -> Iterator[Check]:
    """Per clause that claims `same_output_at_init`: what its modules change, they leave as it is.

    All inserted modules are as they are drawn at first, and one forward shows them all. A clause of
    which no module changes a value, because all make new ones, is compared with the model without
    that clause.
    """
    clauses = _claiming(runs.rewritten, "same_output_at_init")
    if not clauses:
        return
    made = given(runs(START, Situation()))
    for clause in clauses:
        name = f"{clause.origin}: same output at initialisation"
        own = _insertions(runs.fresh, clause, "same_output_at_init")
        watched = [i for i in own if i.path in runs.changes]
        if watched:
            worst = max(watched, key=lambda i: runs.changes[i.path])
            error = runs.changes[worst.path]
            yield Check(name, error == 0, error, "" if error == 0 else f"at '{worst.path}'")
        elif own:
            error = over_largest(image(_without(runs.fresh, clause), runs.rewritten), made)
            yield Check(name, error == 0, error, "compared with the model without the clause")


def _claiming(rewritten: Rewritten, claim: str) -> list[ClauseRef]:
    """The clauses whose passes claim something, in the order of the spec; none once lowered."""
    steps = () if rewritten.lowered else rewritten.result.steps
    return [step.clause for step in steps if claim in step.claims]


def _insertions(rewritten: Rewritten, clause: ClauseRef, claim: str) -> list[Insertion]:
    """What a clause put in at the sites where it makes a claim."""
    editor = rewritten.result.editor
    waived = editor.waived.get((clause.number, claim), {})
    own = (i for i in editor.insertions if i.clause == clause.number)
    return [i for i in own if i.site.role not in waived]


def _without(rewritten: Rewritten, clause: ClauseRef) -> nn.Module:
    """The model without one clause, all else as it is drawn."""
    from ..rewrite.engine import rewrite

    kept = (c for i, c in enumerate(rewritten.spec.clauses) if i != clause.number)
    spec = replace(rewritten.spec, clauses=tuple(kept))
    result = rewrite(spec, _copy(rewritten.base), allocations=rewritten.result.known)
    draw(result, rewritten.seed)
    return interpreted(result.root)


def _copy(root: nn.Module) -> nn.Module:
    def own(parameter: nn.Parameter) -> nn.Parameter:
        return nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)

    return duplicate(root, own, lambda b: b.clone())


# -- exact lowering -------------------------------------------------------------------------------


def lowerings(runs: Runs, allowed: float = EXACT) -> Iterator[Check]:
    """Per clause that claims `lowers_exactly`: lowering changes its modules, and no output.

    What was put in is random, so that no branch is zero. Clauses are lowered one after the other,
    each compared with the model before; see `verification.lowered`.
    """
    rewritten, before = runs.rewritten, runs.twins_output
    clauses = _claiming(rewritten, "lowers_exactly")
    claiming = {c.number: c for c in clauses if _insertions(rewritten, c, "lowers_exactly")}
    for stage in runs.stages:
        if stage.clause in claiming:
            clause = claiming[stage.clause]
            error = over_largest(before, stage.output)
            own = {i.path for i in _insertions(runs.twin, clause, "lowers_exactly")}
            left = [path for path in stage.unchanged if path in own]
            name = f"{clause.origin}: lowers exactly"
            note = f"lowering leaves '{left[0]}' as it is" if left else ""
            yield Check(name, error <= allowed and not left, error, note)
        before = stage.output


# -- what passes measure themselves ---------------------------------------------------------------


def properties(runs: Runs) -> Iterator[Check]:
    """Per clause what `errors` of its pass measures of each call of its modules, in one forward.

    A claim that it is to measure and does not is one that fails.
    """
    given(runs("module", Situation()))
    rewritten = runs.rewritten
    for step in rewritten.result.steps:
        measured = runs.errors.get(step.clause.number, {})
        missing = [
            claim
            for claim in step.claims
            if claim not in (*CLAIMS, *measured) and _insertions(rewritten, step.clause, claim)
        ]
        for claim, error in measured.items():
            yield Check(f"{step.clause.origin}: {claim}", error < MEASURED, error)
        for claim in missing:
            yield Check(f"{step.clause.origin}: {claim}", False, math.inf, "nothing measures it")
