"""Collects the errors of a run, so that all of them are reported together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from vitrewrite.errors import ErrorList, SpecError, VitrewriteError, raise_all

LIMIT = 50  # errors that anyone would read


class TooMany(Exception):  # noqa: N818 - control flow, not an error of its own
    """Raised inside when there are more errors than anyone would read."""


class Problems:
    """Errors found so far."""

    def __init__(self) -> None:
        self.errors: list[VitrewriteError] = []

    def add(self, error: VitrewriteError) -> None:
        """Keeps one more error, unless it is there already: one override can reach two clauses.

        Raises:
            TooMany: there are `LIMIT` of them.
        """
        known = [(each.code, each.message, each.span) for each in self.errors]
        if (error.code, error.message, error.span) in known:
            return
        self.errors.append(error)
        if len(self.errors) >= LIMIT:
            message = f"stopped after {LIMIT} errors"
            self.errors.append(SpecError("VR121", message))
            raise TooMany

    @contextmanager
    def catch(self) -> Iterator[None]:
        """Keeps what the body raises, and goes on after it."""
        try:
            yield
        except ErrorList as several:
            for error in several.errors:
                self.add(error)
        except VitrewriteError as error:
            self.add(error)

    def raise_all(self) -> None:
        """Raises what was kept, if anything, in the order of the text."""
        files = {error.span.file: None for error in self.errors if error.span}
        order = {file: number for number, file in enumerate(files)}
        raise_all(sorted(self.errors, key=lambda error: _place(error, order)))


def _place(error: VitrewriteError, order: dict[str, int]) -> tuple[int, int, int]:
    if error.span is None:
        return len(order), 0, 0
    return order[error.span.file], error.span.line, error.span.column


@contextmanager
def all_together() -> Iterator[Problems]:
    """Collects errors in the body and raises them after it.

    Raises:
        VitrewriteError: the one error there was, or an `ErrorList`.
    """
    problems = Problems()
    with suppress(TooMany):
        yield problems
    problems.raise_all()
