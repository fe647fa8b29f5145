"""What the clauses of a spec train, as budgets of measuring selectors count it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from ..errors import VitrewriteError
from ..language.model import Spec
from ..selection.select import Selection
from ..selection.within import Site
from ..sensitivity.calls import calls
from .parameters import parameters_of

if TYPE_CHECKING:
    from .engine import Rewrite


def trained_anyway(spec: Spec, result: Rewrite) -> int:
    """Parameters of `train` clauses that measure nothing, the head excluded."""
    selection = Selection(result.anatomy, result.root)
    names: set[str] = set()
    for clause in spec.clauses:
        if clause.verb == "train" and clause.sites is not None and not any(calls(clause.sites)):
            with contextlib.suppress(VitrewriteError):  # told when the clause itself is selected
                sites = selection.sites(clause.sites)
                names |= parameters_of(sites, result.root)
    parameters = dict(result.root.named_parameters())
    return sum(parameters[n].numel() for n in names - result.head if n in parameters)


def trained_for(call: str, found: list[tuple[Site, ...]], result: Rewrite) -> int:
    """How many parameters the clauses of an allocation train, with what is trained anyway."""
    inserted = {id(p) for i in result.editor.insertions for p in i.module.parameters()}
    chosen: set[str] = set()
    clauses = set()
    for number, (clause, sites) in enumerate(zip(result.spec.clauses, found, strict=True)):
        named = [str(c) for c in calls(clause.sites)]
        if call in named and clause.use is not None:
            clauses.add(number)
        if clause.verb == "train" and (call in named or not named):
            chosen |= parameters_of(sites, result.root)
    own = [i.module for i in result.editor.insertions if i.clause in clauses]
    modules = [p for module in own for p in module.parameters()]
    base = [
        p
        for n, p in result.root.named_parameters()
        if n in chosen - result.head and id(p) not in inserted
    ]
    unique = {id(p): p.numel() for p in (*modules, *base) if p.requires_grad}
    return sum(unique.values())
