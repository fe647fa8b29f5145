"""Which trained parameters the factors of a recipe are for."""

from __future__ import annotations

from ..errors import RewriteError, caused_at
from ..language.factors import Factor
from ..selection.select import Selection
from .engine import Rewrite
from .parameters import parameters_at


def factors_of(result: Rewrite) -> tuple[tuple[Factor, frozenset[str]], ...]:
    """Each factor of the spec with the trained parameters that it is for, by name.

    Raises:
        MatchError: VR301 to VR304 for sites that the model does not have.
        RewriteError: VR408 for rows of a fused weight, VR432 if nothing there is trained that a
            factor before has not taken.
    """
    if not result.spec.tune.factors:
        return ()
    selection = Selection(result.anatomy, result.root)
    left = {n for n, p in result.root.named_parameters() if p.requires_grad}
    free = dict.fromkeys((f.name for f in result.spec.tune.factors), left)
    found = []
    for factor in result.spec.tune.factors:
        with caused_at(factor.span):
            sites = selection.sites(factor.sites)
            wanted = parameters_at(sites, result.editor, result.root) & left
        taken = wanted & free[factor.name]
        if not taken:
            raise _idle(factor, bool(wanted))
        free[factor.name] = free[factor.name] - taken
        found.append((factor, frozenset(taken)))
    return tuple(found)


def _idle(factor: Factor, taken: bool) -> RewriteError:
    what = "all of it has the factor of an earlier one" if taken else "nothing there is trained"
    return RewriteError(
        "VR432",
        f"'{factor.name}({factor.sites})' changes nothing: {what}",
        span=factor.span,
        suggestion="take it out" if taken else "add a clause such as 'train SITES', or take it out",
    )
