"""What a run of the command tells: one JSON document, lines for CI, and how much of the rest."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import click

from ..errors import VitrewriteError

_LEVELS = {True: "error", False: "warning"}


@dataclass
class Output:
    """What is printed when a command ends, and what it prints on the way.

    JSON waits until the end, so that there is one document: what was found, and with it what went
    wrong, if something did.

    Attributes:
        as_json: whether JSON is asked for.
        quiet: whether nothing but errors and JSON is printed.
        verbose: whether each step and the warnings of libraries are told.
        document: what a command wants to print as JSON.
        lines: printed at the end, however quiet the command is.
    """

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False
    document: Mapping[str, Any] | None = None
    lines: list[str] = field(default_factory=list)
    stdout: IO[str] | None = None  # where a quiet command prints what it must

    def finish(self, errors: Sequence[VitrewriteError] | None = None) -> None:
        """Prints what waited; with errors, if it failed, the document has them whole."""
        document, self.document = self.document, None
        lines, self.lines = self.lines, []
        for line in lines:
            click.echo(line, file=self.stdout)
        if errors is not None and self.as_json:
            found = [error.to_json(shell=True) for error in flat(errors)]
            document = {**(document or {}), "ok": False, "errors": found}
        if document is not None:
            click.echo(json.dumps(document, indent=2, default=str), file=self.stdout)


def current() -> Output:
    """That of the command that runs; one that prints everything outside of any."""
    context = click.get_current_context(silent=True)
    found = context.find_object(Output) if context is not None else None
    return found or Output()


def silence(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    """Sends what a command prints nowhere, until it ends."""
    if wanted and not context.resilient_parsing:
        output = context.ensure_object(Output)
        output.quiet, output.stdout = True, sys.stdout
        context.with_resource(contextlib.redirect_stdout(io.StringIO()))


def speak_up(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    """Has a command tell its steps."""
    if wanted and not context.resilient_parsing:
        context.ensure_object(Output).verbose = True
        warnings.simplefilter("default")


def flat(errors: Sequence[VitrewriteError]) -> list[VitrewriteError]:
    """Errors, those in lists too."""
    return [each for error in errors for each in getattr(error, "errors", (error,))]


# -- for CI at GitHub -----------------------------------------------------------------------------


def annotation(error: VitrewriteError, name: str, *, wrong: bool = True) -> str:
    """An error as GitHub shows it beside the line that it is about.

    Args:
        error: what is wrong.
        name: the spec that it was found in.
        wrong: whether it is an error and not a warning.
    """
    span, place = error.span, {}
    if span is not None and os.path.isfile(span.file):  # noqa: PTH113 - never raises
        place = {
            "file": span.file, "line": span.line, "endLine": span.end_line, "col": span.column,
            "endColumn": span.end_column,
        }  # fmt: skip
    elif os.path.isfile(name):  # noqa: PTH113
        place = {"file": name, "line": 1}
    facts = {**place, "title": error.code}
    listed = ",".join(f"{key}={_escaped(str(value), ':,')}" for key, value in facts.items())
    notes = [f"note: {note}" for note in error.notes]
    text = "\n".join([error.message, *notes, *([f"help: {error.shell}"] if error.shell else [])])
    return f"::{_LEVELS[wrong]} {listed}::{_escaped(text)}"


def _escaped(text: str, others: str = "") -> str:
    return re.sub(f"[%\r\n{others}]", lambda found: f"%{ord(found[0]):02X}", text)


# -- colour ---------------------------------------------------------------------------------------


def colour() -> bool | None:
    """For click: never if NO_COLOR says so, else on a terminal only."""
    return False if os.environ.get("NO_COLOR") else None


def tell(error: VitrewriteError, before: str = "") -> None:
    """Prints an error on stderr, with colour on a terminal."""
    text = before + error.render(shell=True)
    click.echo(coloured(text) if sys.stderr.isatty() else text, err=True, color=colour())


def coloured(text: str) -> str:
    """The text of errors, with codes, carets and the words in front in colour."""
    text = re.sub(r"(?m)^(\S.*?)?\b(VR\d{3})\b", lambda m: (m[1] or "") + _red(m[2]), text)
    text = re.sub(r"(?m)^(\s+)(\^+)$", lambda m: m[1] + _red(m[2]), text)
    return re.sub(r"(?m)^  (note|help):", lambda m: "  " + click.style(m[0][2:], fg="cyan"), text)


def _red(text: str) -> str:
    return click.style(text, fg="red", bold=True)


def signed(text: str) -> str:
    """A plan, with what is added in green, changed in yellow and taken away in red."""
    colours = {"+": "green", "~": "yellow", "-": "red"}
    return re.sub(
        r"(?m)^( *)([+~-])(?= +\d)", lambda m: m[1] + click.style(m[2], fg=colours[m[2]]), text
    )
