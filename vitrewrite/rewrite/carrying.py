"""One clause carried out at its sites, in one model of the tree after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from .. import sites as verbs
from ..catalog.own_code import own_code
from ..editing.editor import Insertion
from ..editing.facts import Reader, watched
from ..errors import caused_at
from ..selection.kinds import KINDS, kind_of
from ..selection.within import Site
from ..sites import BoundSite, Context
from .bases import BaseState
from .dropping import expect
from .schedule import Job
from .step import Step

if TYPE_CHECKING:
    from .engine import Rewrite


def carry_out(job: Job, result: Rewrite) -> None:
    """Carries out a clause, and notes what it did."""
    put, gone = len(result.editor.insertions), result.editor.gone
    with caused_at(job.clause.span):
        left = list(job.sites)
        for base in result.bases:
            own = [site for site in left if base.holds(site) or base is result.bases[-1]]
            known = {id(site) for site in own}
            left = [site for site in left if id(site) not in known]
            if own:
                _carry_out_in(base, job, own, result)
        result.editor.clean()
    count = sum(p.numel() for p in _parameters(result.editor.insertions[put:]))
    count -= result.editor.gone - gone
    roles = tuple(site.role for site in job.sites)
    result.steps.append(Step(job.clause, "insert", roles, "+", count, job.method.claims))


def _carry_out_in(base: BaseState, job: Job, sites: Sequence[Site], result: Rewrite) -> None:
    """The part of a clause that is about one model."""
    scope = tuple(dict.fromkeys(kind_of(site).unit(site) for site in sites))
    roles = tuple(site.role for site in sites)
    folds = "lowers_exactly" in job.method.claims
    reader = Reader(
        result.editor, base.anatomy, job.clause, job.method, base.training, base.stream.read
    )
    anatomy = replace(base.anatomy, stream=watched(base.anatomy.stream, reader))
    context = Context(
        result.editor,
        job.clause,
        anatomy,
        base.stream,
        scope,
        roles,
        folds=folds,
        batches=result.batches,
        checked=result.checked,
        profile=result.profile,
        again=result.again,
        bases=result.anatomy.bases,
    )
    base.stream.reader, own = reader, {id(site) for site in sites}
    for method, chosen in job.groups():
        known = len(result.editor.insertions)
        here = tuple(site for site in chosen if id(site) in own)
        for bound in bind_all(here, replace(context, shared={})):
            where = f"rewrite() at '{bound.role}'"
            with own_code(type(method), job.clause.pass_name, where):
                method.rewrite(bound)
        added = result.editor.insertions[known:]
        result.methods.at |= {i.path: method for i in added if method != job.method}
    base.stream.reader, reader.active = None, False


def _parameters(insertions: Sequence[Insertion]) -> list[nn.Parameter]:
    """Those of modules that were put in, each once."""
    return list({id(p): p for i in insertions for p in i.module.parameters()}.values())


def bind_all(found: Sequence[Site], context: Context) -> list[BoundSite]:
    """The sites as a pass gets them, kind by kind.

    Raises:
        RewriteError: VR401 if another clause took one out, VR402 if it has the pass already.
    """
    expect(found, context.clause, context.editor)
    bound: list[BoundSite] = []
    for kind in KINDS.values():
        same = [site for site in found if kind_of(site) is kind]
        bound += getattr(verbs, kind.gets).bind(context, same)
    for made in bound:
        made.refuse_twice()
    return bound
