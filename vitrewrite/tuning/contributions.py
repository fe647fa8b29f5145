"""The procedures that the passes of a spec contribute."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from ..catalog.declare import Pass
from ..catalog.own_code import own_code
from ..editing.editor import Insertion
from ..errors import TuneError
from ..language.settings import Settings
from ..language.values import show
from ..rewrite.rewritten import Rewritten
from ..text import listing
from .procedure import Hooks, Phase, Procedure
from .run import Run
from .search import StructureSearch
from .stitches import StitchTraining


def contributions(rewritten: Rewritten, settings: Settings) -> tuple[Procedure, ...]:
    """One procedure for each clause whose pass has one, in the order of the spec; then a search.

    Raises:
        TuneError: VR859 if options by site make other procedures from site to site.
    """
    found: list[object] = []
    for number, method in sorted(rewritten.result.methods.items()):
        procedure = _procedure(method)
        for insertion in rewritten.result.editor.insertions:
            there = rewritten.result.methods.of(insertion)
            if insertion.clause != number or there is method:
                continue
            if not _same(procedure, _procedure(there)):
                raise _differing(insertion, method, there)
        found.append(procedure)
    if settings.macs is not None:
        found.append(StructureSearch())
    if rewritten.spec.bases:
        found.append(StitchTraining())
    return tuple(procedure for procedure in found if isinstance(procedure, Procedure))


def _procedure(method: Pass) -> object:
    with own_code(type(method), type(method).__name__, "procedure()"):
        return method.procedure()


def _same(first: object, second: object) -> bool:
    """Whether two procedures do the same; most know no equality of their own."""
    if first is None or second is None:
        return first is second
    return first == second or (type(first) is type(second) and vars(first) == vars(second))


def _differing(insertion: Insertion, first: Pass, other: Pass) -> TuneError:
    names = [f.name for f in dataclasses.fields(first)]
    values = {n: (getattr(first, n), getattr(other, n)) for n in names}
    odd = [n for n, (a, b) in values.items() if a != b]
    clause, name = insertion.site.clause, insertion.pass_name
    options = listing(f"{name}.{option}" for option in odd)
    return TuneError(
        "VR859",
        f"{options} differs from site to site, and {name} trains all of its sites in one way",
        span=clause.options.get(odd[0], clause.span),
        notes=[f"at '{insertion.site.role}' it is {', '.join(show(values[n][1]) for n in odd)}"],
        suggestion="give one value for all sites",
    )


def phases(run: Run) -> tuple[Phase, ...]:
    """The phases of a run: those of the one procedure that has any, or a plain one.

    Raises:
        TuneError: VR854 if two passes bring phases.
    """
    found = [(p, tuple(p.phases(run))) for p in run.procedures]
    found = [(p, several) for p, several in found if several]
    if len(found) > 1:
        names = " and ".join(f"'{type(p).__name__}'" for p, _ in found[:2])
        message = f"{names} both bring phases of their own, which one run cannot mix"
        raise TuneError("VR854", message)
    return found[0][1] if found else (Phase(),)


def entry_of(hooks: Iterable[Hooks]) -> str:
    """The entry of the model that a step calls.

    Raises:
        TuneError: VR460 if two procedures ask for different ones.
    """
    found = {each.entry: type(each).__name__ for each in hooks if each.entry != "forward"}
    if len(found) > 1:
        (first, one), (second, other) = [*found.items()][:2]
        raise TuneError(
            "VR460",
            f"{one} calls the model as '{first}' in training and {other} as '{second}', and a step "
            "has one program",
            suggestion="train with one of the two passes",
        )
    return next(iter(found), "forward")
