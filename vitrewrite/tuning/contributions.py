"""The procedures that the passes of a spec contribute."""

from __future__ import annotations

from ..catalog.own_code import own_code
from ..errors import TuneError
from ..rewrite.rewritten import Rewritten
from .procedure import Phase, Procedure
from .run import Run


def contributions(rewritten: Rewritten) -> tuple[Procedure, ...]:
    """One procedure for each clause whose pass has one, in the order of the spec."""
    found = []
    for _, method in sorted(rewritten.result.methods.items()):
        with own_code(type(method), type(method).__name__, "procedure()"):
            found.append(method.procedure())
    return tuple(procedure for procedure in found if isinstance(procedure, Procedure))


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
