"""The model that is measured where a spec gives it another head."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from ..anatomy.sites import Anatomy, Classifier
from ..language.model import Clause, Spec
from ..rewrite.engine import rewrite
from ..rewrite.initial import draw
from ..selection.select import Selection
from ..sensitivity.calls import calls
from ..tracing.unit import duplicate


def with_new_head(spec: Spec, base: nn.Module, anatomy: Anatomy, seed: int) -> nn.Module:
    """The model with the heads that a spec puts in place of its own, as they are drawn at first.

    So sensitivities are those of the loss that is trained, as SPT has them for segmentation; what
    else the spec does is not there yet.

    Args:
        spec: whose `replace` clauses at heads are carried out.
        base: a captured model; it is left alone, and shares its weights with the result.
        anatomy: its sites.
        seed: of the new heads.

    Returns:
        The model itself if no clause gives it another head.

    Raises:
        VitrewriteError: for what is wrong with such a clause on this model.
    """
    selection = Selection(anatomy, base)
    clauses = tuple(clause for clause in spec.clauses if _at_head(clause, selection))
    if not clauses:
        return base
    root = duplicate(
        base, lambda p: nn.Parameter(p.detach(), requires_grad=p.requires_grad), lambda b: b
    )
    result = rewrite(replace(spec, clauses=clauses), root)
    draw(result, seed)
    return result.root.eval()


def _at_head(clause: Clause, selection: Selection) -> bool:
    """Whether a clause puts something in the place of heads alone."""
    if clause.verb != "replace" or clause.sites is None or any(calls(clause.sites)):
        return False
    sites = selection.sites(clause.sites)
    return bool(sites) and all(isinstance(site, Classifier) for site in sites)
