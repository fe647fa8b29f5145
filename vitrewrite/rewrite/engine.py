"""Carries out a spec on a captured tree: the part that `plan` and `apply` share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .. import catalog
from ..anatomy import analyse
from ..anatomy.sites import Anatomy, Linear
from ..declare import Pass
from ..errors import RewriteError, VitrewriteError, listing, raise_all
from ..language.model import Clause as SpecClause
from ..language.model import Spec
from ..tracing import inputs
from .editor import Editor
from .schedule import Job, overlapping, schedule
from .select import KINDS, Named, Selection, Site, parts
from .sites import Clause, LinearSite


@dataclass
class Step:
    """What one clause did.

    Attributes:
        change: `+` puts something in, `~` changes what is trained, `-` takes something out.
        parameters: how many it added or trains.
    """

    clause: Clause
    verb: str
    sites: tuple[str, ...]
    change: str
    parameters: int = 0


@dataclass
class Rewrite:
    """A tree with a spec carried out on it.

    Attributes:
        root: the tree of units.
        anatomy: its sites, as they were before.
        example: meta input of batch size one.
        steps: what each clause did, in the order of the spec.
        methods: the pass of each clause that has one, by the clause's position.
        base_trained: parameters of the original model that the spec trains.
    """

    spec: Spec
    root: nn.Module
    anatomy: Anatomy
    example: tuple[torch.Tensor, ...]
    editor: Editor
    steps: list[Step] = field(default_factory=list)
    methods: dict[int, Pass] = field(default_factory=dict)
    base_trained: set[str] = field(default_factory=set)

    @property
    def warnings(self) -> list[str]:
        """What is odd but not wrong, in the spec and on this model."""
        return [*(w.render() for w in self.spec.warnings), *self.editor.warnings]

    @property
    def head(self) -> set[str]:
        """Names of the classifier's parameters."""
        layers = {site.weight.rpartition(".")[0] for site in self.anatomy.head}
        return {n for n, _ in self.root.named_parameters() if n.rpartition(".")[0] in layers}


def rewrite(spec: Spec, root: nn.Module, example: Any = None) -> Rewrite:
    """Carries out all clauses of `spec` on the tree `root`, in place.

    Raises:
        VitrewriteError: all errors of selection together, else the first one of rewriting.
    """
    _refuse_drop(spec)
    anatomy = analyse(root)
    result = Rewrite(spec, root, anatomy, example_of_one(root, example), Editor(root))
    selection = Selection(anatomy, root)
    found = _select(spec, selection)
    jobs = []
    for number, (clause, sites) in enumerate(zip(spec.clauses, found, strict=True)):
        if clause.use is not None:
            jobs.append(_job(number, clause, sites, result))
    for job in schedule(jobs):
        _carry_out(job, result)
    _train(spec, found, result)
    result.steps.sort(key=lambda step: step.clause.number)
    return result


def _refuse_drop(spec: Spec) -> None:
    """`drop` is part of the language; nothing carries it out yet."""
    dropping = [c for c in spec.clauses if c.verb == "drop"]
    raise_all(
        [RewriteError("VR409", f"'{c}' cannot be carried out yet", span=c.span) for c in dropping]
    )


def example_of_one(root: nn.Module, example: Any = None) -> tuple[torch.Tensor, ...]:
    """The model's input on meta, with a batch of one."""
    known = root.__dict__["example"] if example is None else example
    args, kwargs = inputs.as_arguments(known)
    batch = inputs.batch_of(known)
    return tuple(
        torch.empty([1 if n == batch and i == 0 else n for i, n in enumerate(v.shape)],
                    dtype=v.dtype, device="meta")
        for v in (*args, *kwargs.values())
    )  # fmt: skip


def _select(spec: Spec, selection: Selection) -> list[tuple[Site, ...]]:
    errors: list[VitrewriteError] = []
    found: list[tuple[Site, ...]] = []
    for clause in spec.clauses:
        try:
            found.append(selection.sites(clause.sites) if clause.sites is not None else ())
        except VitrewriteError as error:
            errors.append(error)
            found.append(())
    raise_all(errors)
    return found


def _job(number: int, clause: SpecClause, sites: tuple[Site, ...], result: Rewrite) -> Job:
    assert clause.use is not None
    spans = {option.name: option.span for option in clause.use.options}
    described = Clause(number, clause.use.name, str(clause), clause.span, spans)
    method = catalog.load(clause.use.name)(**clause.use.values)
    result.methods[number] = method
    for site in sites:
        if not any(isinstance(site, KINDS[kind]) for kind in method.attaches):
            raise described.error(
                "VR406",
                f"{described.pass_name} attaches to {listing(method.attaches)}, "
                f"and '{site.role}' is a {_kind(site)}",
                suggestion=f"'every {method.attaches[0]} in {site.role}' selects those in it",
            )
    twice = overlapping(sites)
    if twice:
        raise RewriteError(
            "VR303",
            f"'{twice[0].role}' and '{twice[1].role}' are about the same rows of one weight",
            span=clause.sites.span if clause.sites else clause.span,
        )
    return Job(described, method, sites)


def _kind(site: Site) -> str:
    if isinstance(site, Named):
        return site.kind
    kinds = (name for name, cls in KINDS.items() if isinstance(site, cls))
    return next(kinds, f"{type(site).__name__.lower()} of a decoder")


def _carry_out(job: Job, result: Rewrite) -> None:
    before = sum(p.numel() for p in result.root.parameters())
    for parts_ in _grouped(job.sites):
        job.method.rewrite(LinearSite(result.editor, job.clause, parts_))
    result.editor.clean()
    added = sum(p.numel() for p in result.root.parameters()) - before
    roles = tuple(s.role for s in job.sites)
    result.steps.append(Step(job.clause, "insert", roles, "+", added))


def _grouped(sites: Sequence[Site]) -> list[tuple[Linear, ...]]:
    """Row ranges of one layer go to the pass together."""
    groups: dict[Any, list[Linear]] = {}
    for site in sites:
        assert isinstance(site, Linear)
        groups.setdefault((site.call, site.weight), []).append(site)
    return [tuple(sorted(g, key=lambda s: s.rows or (0, 0))) for g in groups.values()]


# -- what is trained ------------------------------------------------------------------------------


def _train(spec: Spec, found: list[tuple[Site, ...]], result: Rewrite) -> None:
    """Freezes the base if the spec adds or trains anything, then follows train and freeze."""
    if not spec.clauses:
        return
    inserted = {id(p) for i in result.editor.insertions for p in i.module.parameters()}
    for parameter in result.root.parameters():
        parameter.requires_grad_(id(parameter) in inserted)
    for number, (clause, sites) in enumerate(zip(spec.clauses, found, strict=True)):
        if clause.verb not in ("train", "freeze"):
            continue
        names = {n for site in sites for n in parameters_of(site, result.root)}
        chosen = {n: p for n, p in result.root.named_parameters() if n in names}
        for parameter in chosen.values():
            parameter.requires_grad_(clause.verb == "train")
        described = Clause(number, "", str(clause), clause.span, {})
        count = sum(p.numel() for p in chosen.values())
        roles = tuple(s.role for s in sites)
        result.steps.append(Step(described, clause.verb, roles, "~", count))
    result.base_trained = {
        n for n, p in result.root.named_parameters() if p.requires_grad and id(p) not in inserted
    }


def parameters_of(site: Site, root: nn.Module) -> set[str]:
    """Names of the parameters that a site stands for.

    Raises:
        RewriteError: VR408 for some rows of a fused weight, which cannot be trained alone.
    """
    names = {n for n, _ in root.named_parameters(remove_duplicate=False)}
    paths: set[str] = set()
    for part in parts(site):
        if isinstance(part, Linear):
            if part.rows is not None and part is site:
                raise RewriteError(
                    "VR408", f"'{part.role}' is some rows of {part.weight}, trained only as a whole"
                )
            paths.add(part.weight.rpartition(".")[0])
        elif isinstance(part, Named):
            paths.add(part.path)
        elif getattr(part, "unit", None):
            paths.add(part.unit)  # type: ignore[union-attr, arg-type]
    return {n for n in names if any(n == p or n.startswith(f"{p}.") for p in paths)}
