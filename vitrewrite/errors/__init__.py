"""Every error that vitrewrite reports on purpose.

```
VitrewriteError
├── SpecError        the text of a spec: syntax, names, types, ranges (VR1xx, VR2xx)
├── MatchError       a selector or site that the model does not have (VR3xx)
├── RewriteError     clauses in conflict, a pass that cannot do what it was asked (VR4xx)
├── VerifyError      a claim that does not hold (VR5xx)
├── CaptureError     a model that cannot be captured, or was captured for something else (VR6xx)
├── FileError        folders, weights, deltas and checkpoints on disk (VR70x to VR73x)
├── DataError        images and labels (VR74x, VR75x)
├── EmitError        source that cannot be written (VR80x)
├── TuneError        training that cannot start or go on (VR85x)
├── UsageError       a command line that makes no sense (VR9xx)
└── ErrorList        several of the above, reported together
```

A message is one line in lower case that says what is wrong with the value in it; `span` says
where, `notes` what would be valid, `suggestion` what was probably meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# What moves the cursor, colours a terminal, reorders or hides text: control characters, marks of
# direction and zero width, lone surrogates. Tab and newline are the two exceptions.
UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_EXCERPT = 100  # characters of a source line that an error shows


@dataclass(frozen=True)
class Span:
    """A place in a source text; lines and columns count from 1, `end_column` is exclusive."""

    file: str
    line: int
    column: int
    end_line: int
    end_column: int
    text: str = ""  # the source line at `line`, without its newline

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"

    def excerpt(self) -> str:
        """The source line with a caret line below it; of a long line, the part that matters."""
        stop = self.end_column if self.end_line == self.line else len(self.text) + 1
        # Two thirds of the window lie after the place: what follows an error explains it more.
        first = max(0, self.column - 1 - _EXCERPT // 3) if len(self.text) > _EXCERPT else 0
        line = self.text[first : first + _EXCERPT]
        left, right = "..." * (first > 0), "..." * (first + len(line) < len(self.text))
        column = self.column - first
        width = max(1, min(stop - first, len(line) + 1) - column)
        pad = "".join("\t" if c == "\t" else " " for c in line[: column - 1])
        shown_line = UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", line)
        return f"    {left}{shown_line}{right}\n    {' ' * len(left)}{pad}{'^' * width}"


class VitrewriteError(Exception):
    """Base of all public errors.

    Args:
        code: stable identifier, `VR` and three digits; `vitrewrite explain CODE` tells more.
        message: one line, lower case, with the offending value.
        span: where in a spec, if it is about a spec.
        notes: further lines, such as the values that would be valid.
        suggestion: a near name, or what to do.
        shell: what to do at a command line, where that is something else than in Python.
        measured: the value that was found, where a claim or check does not hold.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        span: Span | None = None,
        notes: Sequence[str] = (),
        suggestion: str | None = None,
        shell: str | None = None,
        measured: Any = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.span = span
        self.notes = tuple(notes)
        self.suggestion = suggestion
        self.shell = shell or suggestion
        self.measured = measured

    def render(self, *, shell: bool = False) -> str:
        """The error as a user reads it: place, code, message, source line, notes, help.

        Args:
            shell: whether the user is at a command line.
        """
        place = f"{self.span}: " if self.span else ""
        lines = [f"{place}{self.code} {self.message}"]
        if self.span and self.span.text.strip():
            lines.append(self.span.excerpt())
        lines += [f"  note: {note}" for note in self.notes]
        if help_ := self.shell if shell else self.suggestion:
            lines.append(f"  help: {help_}")
        # A terminal takes no lone surrogates, and obeys control characters.
        return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", "\n".join(lines))

    def to_json(self, *, shell: bool = False) -> dict[str, Any]:
        """The error as data, with every key: None for what it does not have.

        Args:
            shell: whether the user is at a command line.
        """
        span = self.span
        return {
            "code": self.code,
            "text": self.message,
            "file": span and span.file,
            "line": span and span.line,
            "column": span and span.column,
            "end_line": span and span.end_line,
            "end_column": span and span.end_column,
            "source": span and span.text,
            "notes": list(self.notes),
            "help": self.shell if shell else self.suggestion,
            "measured": self.measured,
        }

    def __str__(self) -> str:
        return self.render()

    def _render_traceback_(self) -> list[str]:
        # What a notebook shows in place of a traceback, which leads through our code alone.
        return [f"{type(self).__name__}: {self}"]

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are pickled by the arguments of their base; worker processes send ours back.
        return _restored, (type(self), self.args, self.__dict__)


def _restored(
    cls: type[VitrewriteError], args: tuple[object, ...], state: dict[str, Any]
) -> VitrewriteError:
    error = cls.__new__(cls, *args)
    error.__dict__.update(state)
    return error


class SpecError(VitrewriteError):
    """The text of a spec is wrong: syntax, a name, a type, a range."""


class MatchError(VitrewriteError):
    """A selector matches nothing, or names a site that the model does not have."""


class RewriteError(VitrewriteError):
    """Two clauses are in conflict, or a pass cannot do what it was asked here."""


class VerifyError(VitrewriteError):
    """A claim does not hold."""


class CaptureError(VitrewriteError):
    """A model cannot be captured, or is called with what it was not captured for."""


class FileError(VitrewriteError):
    """A folder, weights file or delta cannot be read, written or used here."""


class ProfileError(VitrewriteError):
    """Measurements do not fit the model, or do not allow what is asked of them."""


class DataError(VitrewriteError):
    """Images or labels are missing, broken, or do not fit the model."""


class EmitError(VitrewriteError):
    """Source cannot be written for a model."""


class TuneError(VitrewriteError):
    """Training cannot start here, or cannot go on."""


class UsageError(VitrewriteError):
    """The command line makes no sense."""


class ErrorList(VitrewriteError):  # noqa: N818 - several of them
    """Several errors of one run, reported together."""

    def __init__(self, errors: Iterable[VitrewriteError]) -> None:
        self.errors = tuple(errors)
        first = self.errors[0]
        super().__init__(first.code, first.message, span=first.span)

    def to_json(self, *, shell: bool = False) -> dict[str, Any]:
        """The first one, with all of them under `errors`."""
        found = [error.to_json(shell=shell) for error in self.errors]
        return {**found[0], "errors": found}

    def render(self, *, shell: bool = False) -> str:
        """All errors, one after the other."""
        return "\n".join(error.render(shell=shell) for error in self.errors)


@contextmanager
def caused_at(span: Span | None) -> Iterator[None]:
    """Errors of the body that do not say where they come from come from here.

    Args:
        span: the clause or line that the body carries out.
    """
    try:
        yield
    except VitrewriteError as error:
        for each in getattr(error, "errors", (error,)):
            each.span = each.span or span
        raise


def raise_all(errors: Sequence[VitrewriteError]) -> None:
    """Raises nothing, the one error, or all of them as an `ErrorList`."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ErrorList(errors)
