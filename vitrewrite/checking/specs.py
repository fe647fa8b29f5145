"""Checks many specs: those of one model share its capture, and processes share the specs.

What a spec costs is mostly its model: reading it takes seconds where it is Hugging Face's, and is
the same for all specs of it. So specs go to processes by model, in runs that are small enough for
all of them to be busy until the end.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import VitrewriteError
from ..language.model import Spec

if TYPE_CHECKING:
    from ..rewrite.captures import Captures
    from ..rewrite.claims import Verdict

_RUN = 8  # specs of a model that a process takes at a time


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
            "errors": [error.code for error in self.errors],
            **({"warnings": [warning.code for warning in self.warnings]} if self.warnings else {}),
            "claims": [verdict.to_json() for verdict in self.claims],
            **({"rows": rows} if rows else {}),
        }

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
        processes: how many; by default as many as there are cores, and one for a few specs.
    """
    runs = _runs(given)
    count = min(processes or _cores(), len(runs))
    if count <= 1 or sum(map(len, runs)) <= 2:
        yield from (_check(each) if isinstance(each, Wanted) else each for each in given)
        return
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


def _context() -> Any:
    """Processes that start with torch imported, where there is a way to."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__.rpartition('.')[0]}.api"])
    return context


def _runs(given: Sequence[Wanted | Checked]) -> list[list[tuple[int, Wanted]]]:
    """What is to check, with its position: by model, a few at a time, the slowest models first."""
    models: dict[str, list[tuple[int, Wanted]]] = {}
    for number, each in enumerate(given):
        if isinstance(each, Wanted):
            models.setdefault(str(each.spec.model), []).append((number, each))
    slow_first = sorted(models.items(), key=lambda item: "hf:" not in item[0])
    return [found[i : i + _RUN] for _, found in slow_first for i in range(0, len(found), _RUN)]


# -- in a process ---------------------------------------------------------------------------------

_CAPTURES: list[Captures] = []  # those of the process


def _checked(run: Sequence[Wanted]) -> list[Checked]:
    return [_check(each) for each in run]


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
