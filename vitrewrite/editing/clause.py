"""The clause that is being carried out, for messages and comments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import RewriteError, Span
from ..text import Told


@dataclass(frozen=True)
class ClauseRef(Told):
    """A clause of a spec with its pass.

    Attributes:
        number: position in the spec.
        text: as the user wrote it.
        span: where.
        options: where each option stands.
    """

    number: int
    pass_name: str
    text: str
    span: Span | None
    options: dict[str, Span]

    @property
    def place(self) -> str:
        """The file and line, or nothing for a clause without a file."""
        return f"{self.span.file.rpartition('/')[2]}:{self.span.line}" if self.span else ""

    @property
    def origin(self) -> str:
        """The comment above a rewritten place: file, line and clause."""
        return f"{self.place}: {self.text}" if self.place else self.text

    def error(
        self, code: str, message: str, option: str | None = None, **extra: Any
    ) -> RewriteError:
        """An error that points at an option of the clause, or at the clause."""
        span = self.options.get(option or "", self.span)
        return RewriteError(code, message, span=span, **extra)

    def without(self, role: str, by: ClauseRef, how: str = "taken out") -> RewriteError:
        """An error about a site that another clause took out, or put something in place of."""
        return self.error(
            "VR401",
            f"'{role}' is {how} by another clause",
            notes=[f"the other clause: {by.origin}"],
            suggestion=f"leave '{role}' to one of them",
        )
