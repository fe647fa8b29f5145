"""Checks many specs: those of one model share its capture, and processes share the specs.

What a spec costs is mostly its model: reading it takes seconds where it is Hugging Face's, and is
the same for all specs of it. So specs go to processes by model, in runs that are small enough for
all of them to be busy until the end.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import VitrewriteError
from ..language.model import Spec

if TYPE_CHECKING:
    from concurrent.futures import Future

    from ..rewrite.captures import Captures
    from ..rewrite.claims import Verdict

FEW = 3  # specs for which no process is worth its start
_RUN = 12  # specs of a model that a process takes at a time
_SLOW = "hf:"


@dataclass(frozen=True)
class Checked:
    """What was found in a spec.

    Attributes:
        name: as it was asked for.
        spec: what was read, if it can be.
        errors: what is wrong with it, claims that do not hold included.
        claims: those that take no weights, with what was measured.
    """

    name: str
    spec: Spec | None
    errors: tuple[VitrewriteError, ...] = ()
    claims: tuple[Verdict, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """It as data."""
        rows = [f"{row.table}: {row.name}" for row in self.spec.rows] if self.spec else []
        return {
            "spec": self.name,
            "ok": not self.errors,
            "errors": [error.to_json(shell=True) for error in self.errors],
            **({"warnings": [each.to_json(shell=True) for each in self.warnings]}
               if self.warnings else {}),
            "claims": [verdict.to_json() for verdict in self.claims],
            **({"rows": rows} if rows else {}),
        }  # fmt: skip

    @property
    def warnings(self) -> Sequence[VitrewriteError]:
        """What is odd but not wrong."""
        return self.spec.warnings if self.spec else ()


@dataclass(frozen=True)
class Wanted:
    """A spec to check on its model; `arguments` are those of `plan`."""

    name: str
    spec: Spec
    arguments: Mapping[str, Any]


def check(given: Sequence[Wanted | Checked], processes: int | None = None) -> Iterator[Checked]:
    """What is found in specs, in their order, as soon as it is known.

    Args:
        given: the specs; what is known already is passed on.
        processes: how many; by default as many as there are cores, and none for a few specs.
    """
    runs = _runs(given)
    count = min(processes or _cores(), len(runs))
    if count <= 1 or len(given) <= FEW:
        yield from (_check(each) if isinstance(each, Wanted) else each for each in given)
        return
    fork_early()
    from concurrent.futures import ProcessPoolExecutor  # several specs pay for it

    with ProcessPoolExecutor(count, mp_context=_context()) as pool:
        places: dict[int, tuple[Future[list[Checked]], int]] = {}
        for run in runs:
            future = pool.submit(_checked, [each for _, each in run])
            places |= {number: (future, place) for place, (number, _) in enumerate(run)}
        for number, each in enumerate(given):
            if isinstance(each, Wanted):
                future, place = places[number]
                each = future.result()[place]
            yield each


def _cores() -> int:
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 1


def fork_early() -> None:
    """Has torch imported in the background, while specs are read; where there is a way to."""
    import multiprocessing

    if "forkserver" in multiprocessing.get_all_start_methods():
        from multiprocessing import forkserver

        forkserver.set_forkserver_preload([f"{__package__.rpartition('.')[0]}.api"])
        forkserver.ensure_running()


def _context() -> Any:
    """Processes that start with torch imported, where there is a way to."""
    import multiprocessing

    many = "forkserver" in multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("forkserver" if many else "spawn")


def _runs(given: Sequence[Wanted | Checked]) -> list[list[tuple[int, Wanted]]]:
    """What is to check, with its position: the slowest models first, and together.

    Hugging Face's take seconds to import and to read, so one process has them all; the others are
    taken a few at a time, by model.
    """
    models: dict[str, list[tuple[int, Wanted]]] = {}
    for number, each in enumerate(given):
        if isinstance(each, Wanted):
            name = str(each.spec.model)
            models.setdefault(_SLOW if _SLOW in name else name, []).append((number, each))
    slow = models.pop(_SLOW, [])
    slow.sort(key=lambda item: str(item[1].spec.model))
    few = [found[i : i + _RUN] for found in models.values() for i in range(0, len(found), _RUN)]
    return [slow, *few] if slow else few


# -- in a process ---------------------------------------------------------------------------------

_CAPTURES: list[Captures] = []  # those of the process


def _checked(run: Sequence[Wanted]) -> list[Checked]:
    gc.disable()  # what libraries hold is searched for garbage in vain
    try:
        return [_check(each) for each in run]
    finally:
        gc.enable()


def _check(wanted: Wanted) -> Checked:
    try:
        claims = _claims(wanted)
    except VitrewriteError as error:
        return Checked(wanted.name, wanted.spec, tuple(getattr(error, "errors", [error])))
    failed = tuple(verdict.error() for verdict in claims if verdict.holds is False)
    return Checked(wanted.name, wanted.spec, failed, claims)


def _claims(wanted: Wanted) -> tuple[Verdict, ...]:
    from ..api import plan
    from ..rewrite.captures import Captures  # torch is needed here only

    if not _CAPTURES:
        _CAPTURES.append(Captures())
    return plan(wanted.spec, captures=_CAPTURES[0], **wanted.arguments).claims
