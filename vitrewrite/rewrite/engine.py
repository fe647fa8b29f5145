"""Carries out a spec on a captured tree: the part that `plan` and `apply` share."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from .. import catalog
from ..anatomy import analyse
from ..anatomy.sites import Anatomy
from ..editing.clause import ClauseRef
from ..editing.editor import Editor
from ..editing.measure import BrokenError, Propagation
from ..editing.samples import Batches
from ..editing.stitching import settle_paths
from ..editing.stream import Stream
from ..errors import RewriteError, VitrewriteError, caused_at, raise_all
from ..language.model import Clause as SpecClause
from ..language.model import Spec
from ..selection.kinds import is_any, word_for
from ..selection.select import Selection
from ..selection.within import Site
from ..sensitivity import Allocation
from ..sensitivity.profile import Profile
from ..sites import settle
from ..text import Told, a_or_an, listing
from ..tracing.about import about
from ..tracing.inputs import example_of_one, noted_example
from ..tracing.unit import on_meta, own_templates
from .advice import Adviser
from .allocations import Allocations
from .bases import BaseState, anchors, bases_of, refuse_drops, refuse_tokens
from .budgets import trained_anyway, trained_for
from .carrying import carry_out
from .choosing import BlockChoice, Chooser, FoundOptions, found_before
from .conflicts import needed
from .dropping import drop_blocks, expect_some
from .misfits import refuse_misfit, refuse_rows
from .order import Order, orders
from .parameters import parameters_of
from .passes import Methods, method_of, methods_by_site
from .schedule import Job, distinct, overlapping, schedule
from .step import Step


@dataclass
class Rewrite(Told):
    """A tree with a spec carried out on it.

    Attributes:
        root: the tree of units.
        anatomy: its sites, as they were before.
        example: meta input of batch size one.
        bases: its models: one, or those that the spec stitches.
        steps: what each clause did, in the order of the spec.
        methods: the pass of each clause that has one, by the clause's position.
        base_trained: parameters of the original model that the spec trains.
        unreached: what is trained in vain, behind values that a clause reads without gradient.
        allocations: what each `sensitive(...)` of the spec bought.
        choices: what goes by `drop ... by`, by pass.
        found: what searches found for clauses, by pass.
        checked: inserted classes that are known to be as they should.
        base_without_head: parameters of the original model, its classifier's left out.
        batches: how samples lie in the values of the tree as `anatomy` has it.
        profile: what was measured of the model, if anything was.
        again: whether the model was made before, as that of a folder was.
    """

    spec: Spec
    root: nn.Module
    anatomy: Anatomy
    example: tuple[torch.Tensor, ...]
    editor: Editor
    bases: tuple[BaseState, ...]
    steps: list[Step] = field(default_factory=list)
    methods: Methods = field(default_factory=Methods)
    base_trained: set[str] = field(default_factory=set)
    unreached: frozenset[str] = frozenset()
    allocations: dict[str, Allocation] = field(default_factory=dict)
    choices: dict[str, BlockChoice] = field(default_factory=dict)
    found: dict[str, FoundOptions] = field(default_factory=dict)
    batches: Batches | None = None
    checked: set[str] = field(default_factory=set, repr=False)
    base_without_head: int = 0
    profile: Profile | None = field(default=None, repr=False)
    again: bool = False

    @property
    def stream(self) -> Stream:
        """What is known of the tokens, as passes changed it; of several models, of the last."""
        return self.bases[-1].stream

    def now(self, anatomy: Anatomy) -> None:
        """Other clauses see other sites from now on; of a tree with one model."""
        self.anatomy = anatomy
        if not anatomy.bases:
            self.bases[0].anatomy = anatomy

    @property
    def warnings(self) -> list[str]:
        """What is odd but not wrong, in the spec and on this model."""
        known = about(self.root).notes
        return [*(w.render() for w in self.spec.warnings), *known, *self.editor.warnings]

    @property
    def chosen(self) -> dict[str, Any]:
        """What was found in training as data, if anything was."""
        known: dict[str, BlockChoice | FoundOptions] = {**self.choices, **self.found}
        found = {name: choice.to_json() for name, choice in known.items()}
        return {"choices": found} if found else {}

    @property
    def known(self) -> dict[str, Any]:
        """All that was measured or found, as `rewrite` takes it to decide the same again."""
        bought = {k: a.to_json(entries=True) for k, a in self.allocations.items()}
        return {**bought, **self.chosen.get("choices", {})}

    @property
    def orders(self) -> tuple[Order, ...]:
        """Where several clauses act on one value, and in which order."""
        return orders(self.editor)

    @property
    def head(self) -> set[str]:
        """Names of the classifier's parameters."""
        layers = {site.weight.rpartition(".")[0] for site in self.anatomy.head}
        inside = tuple(f"{layer}." for layer in layers if layer)  # where a clause replaced one
        names = [n for n, _ in self.root.named_parameters()]
        return {n for n in names if n.rpartition(".")[0] in layers or n.startswith(inside)}


def rewrite(
    spec: Spec,
    root: nn.Module,
    example: Any = None,
    profile: Profile | None = None,
    allocations: Mapping[str, Any] | None = None,
    original: Propagation | None = None,
    anatomy: Anatomy | None = None,
) -> Rewrite:
    """Carries out all clauses of `spec` on the tree `root`, in place.

    Args:
        spec: what to do.
        root: a captured tree.
        example: what it is called with, if that is not what it was captured with.
        profile: measurements for `sensitive(...)`.
        allocations: what was decided by measurements before, as data; goes before `profile`.
        original: a run of the tree as it is; what a clause leaves alone is not run again.
        anatomy: the places of the tree as it is, if they are known.

    Raises:
        VitrewriteError: all errors of selection together, else the first one of rewriting.
    """
    anatomy = anatomy or analyse(root, tuple(spec.bases))
    refuse_rows(spec, anatomy, root)
    example = example_of_one(root, example)
    bases = bases_of(root, anatomy, example)
    result = Rewrite(spec, root, anatomy, example, Editor(root), bases)
    head = result.head
    result.base_without_head = sum(p.numel() for n, p in root.named_parameters() if n not in head)
    result.batches = Batches(root, original)
    result.found = found_before(spec, allocations)
    result.profile, result.again = profile, allocations is not None
    shaping = _shape(spec, result, original)
    chooser = Chooser(allocations or {}, result.choices, result.methods)
    refuse_drops(spec)
    anatomy, dropped = drop_blocks(spec, result.editor, result.anatomy, result.stream, chooser)
    result.now(anatomy)
    result.steps += [Step(ref, "drop", roles, "-", count) for ref, roles, count in dropped]
    shaping |= {ref.number for ref, _, _ in dropped}
    if dropped:
        result.batches = Batches(root, result.batches.known)
    found = _select(spec, result, profile, allocations, shaping)
    jobs = []
    for number, (clause, sites) in enumerate(zip(spec.clauses, found, strict=True)):
        if clause.use is not None and number not in shaping:
            jobs.append(_job(number, clause, sites, result))
    for job in schedule(jobs):
        carry_out(job, result)
    refuse_tokens(result.bases, result.editor)
    for base in result.bases:
        settle(result.editor, base.anatomy, base.stream)
    settle_paths(result.editor, anatomy.bases)
    _waive(result)
    _train(spec, found, result)
    for call, bought in result.allocations.items():
        result.allocations[call] = replace(bought, trained=trained_for(call, found, result))
    result.steps.sort(key=lambda step: step.clause.number)
    return result


def _waive(result: Rewrite) -> None:
    """Notes with each step which of its claims a pass has waived, and why."""
    known = result.editor.waived
    for step in result.steps:
        keys = {claim: (step.clause.number, claim) for claim in step.claims}
        step.waived = {claim: known[key] for claim, key in keys.items() if key in known}


def _shape(spec: Spec, result: Rewrite, original: Propagation | None) -> set[int]:
    """Carries out the clauses that add layers: the others see the model as these leave it.

    Returns:
        Their positions.
    """
    numbers = [
        i
        for i, clause in enumerate(spec.clauses)
        if clause.use and "layers" in catalog.signature(clause.use.key).writes
    ]
    if numbers:  # what is noted in the graphs from here on is not true of the base
        own_templates(result.root)
    for number in numbers:
        clause = spec.clauses[number]
        assert clause.sites is not None
        with caused_at(clause.span):
            sites = Selection(result.anatomy, result.root).sites(clause.sites)
        carry_out(_job(number, clause, sites, result), result)
        example = noted_example(result.root)
        try:
            original = Propagation(on_meta(result.root), example, original, note=True)
        except BrokenError as error:
            refuse_misfit(result.editor, error)
            told = needed(error, result.stream.start)
            message = f"the rewritten model does not run: {told}"
            raise RewriteError("VR405", message, span=clause.span) from error
        result.now(analyse(result.root))
        result.batches = Batches(result.root, original)
    return set(numbers)


def _select(
    spec: Spec,
    result: Rewrite,
    profile: Profile | None,
    known: Mapping[str, Any] | None,
    done: set[int],
) -> list[tuple[Site, ...]]:
    errors: list[VitrewriteError] = []
    found: list[tuple[Site, ...]] = []
    extra = trained_anyway(spec, result)
    added = tuple(insertion.path for insertion in result.editor.insertions)
    allocations = Allocations(spec, result.root, result.anatomy, profile, extra, known, added)
    named = Selection(result.anatomy, result.root)
    for number, clause in enumerate(spec.clauses):
        selection = named.measuring(functools.partial(allocations.sites, clause))
        try:
            wanted = None if number in done else clause.sites
            with caused_at(clause.span):
                named_by = anchors(clause)
                found.append(named_by if wanted is None else selection.sites(wanted))
        except VitrewriteError as error:
            errors.append(error)
            found.append(())
    raise_all(errors)
    result.allocations = dict(allocations.made)
    return found


def _job(number: int, clause: SpecClause, sites: tuple[Site, ...], result: Rewrite) -> Job:
    assert clause.use is not None
    spans = {option.name: option.span for option in clause.use.options}
    described = ClauseRef(number, clause.use.name, clause.brief, clause.span, spans)
    method = method_of(clause)
    result.methods[number] = method
    for site in sites:
        if not is_any(site, method.attaches):
            advice = Adviser(clause, method, sites, result).advice(site)
            raise described.error(
                "VR406",
                f"{described.pass_name} attaches to {listing(method.attaches)}, "
                f"and '{site.role}' is {a_or_an(word_for(site))}",
                notes=advice.notes,
                suggestion=advice.suggestion,
            )
    sites = distinct(sites)
    twice = overlapping(sites)
    if twice:
        raise RewriteError(
            "VR303",
            f"'{twice[0].role}' and '{twice[1].role}' are about the same rows of one weight",
            span=clause.sites.span if clause.sites else clause.span,
        )
    roles = [site.role for site in sites]
    methods = methods_by_site(clause, described, roles, result.found.get(clause.use.name))
    there = [(site, m) for site, m in zip(sites, methods, strict=True) if m is not None]
    return Job(described, method, tuple(s for s, _ in there), tuple(m for _, m in there))


# -- what is trained ------------------------------------------------------------------------------


def _train(spec: Spec, found: list[tuple[Site, ...]], result: Rewrite) -> None:
    """Freezes the base, but for layers that lost a part; then follows train and freeze.

    A spec without clauses says nothing about it, and leaves it as it is.
    """
    modules = [i.module for i in result.editor.insertions]
    inserted = {id(p) for module in modules for p in module.parameters()}
    kept = {id(m.get_parameter(n)) for m in modules for n in getattr(m, "frozen", ())}
    new = (inserted - kept) | {id(each.new) for each in result.editor.gathered}
    for parameter in result.root.parameters() if spec.clauses else ():
        parameter.requires_grad_(id(parameter) in new)
    for number, (clause, sites) in enumerate(zip(spec.clauses, found, strict=True)):
        if clause.verb not in ("train", "freeze"):
            continue
        described = ClauseRef(number, "", str(clause), clause.span, {})
        with caused_at(clause.span):
            names = parameters_of(sites, result.root)
        expect_some(sites, described, result.editor)
        chosen = {n: p for n, p in result.root.named_parameters() if n in names}
        for parameter in chosen.values():
            parameter.requires_grad_(clause.verb == "train")
        count = sum(p.numel() for p in chosen.values())
        roles = tuple(s.role for s in sites)
        result.steps.append(Step(described, clause.verb, roles, "~", count))
    named = result.root.named_parameters()
    result.base_trained = {n for n, p in named if p.requires_grad and id(p) not in inserted}
