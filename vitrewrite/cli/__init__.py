"""The command line: what each command takes, in `commands`; errors and exit status, here."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

import click

from ..errors import FileError, UsageError, VitrewriteError
from ..text import shown
from . import (
    anatomy,
    benching,
    checking,
    commands,
    deltas,
    packing,
    palettes,
    profiling,
    results,
    showing,
    tuning,
    weighing,
)

__all__ = [
    "anatomy",
    "benching",
    "checking",
    "commands",
    "deltas",
    "packing",
    "palettes",
    "profiling",
    "results",
    "run",
    "showing",
    "tuning",
    "weighing",
]


def run(argv: list[str]) -> int:
    """Runs one command line and returns its exit status; never raises."""
    debug = "--debug" in argv
    argv = [a for a in argv if a != "--debug"]
    try:
        # Not `cli.main`, which loses exit statuses and answers a closed pipe with one of its own.
        with _quiet(), commands.cli.make_context("vitrewrite", argv) as context:
            commands.cli.invoke(context)
        return 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return 2
    except VitrewriteError as error:
        click.echo(error.render(shell=True), err=True)
        if debug:
            raise
        return 2 if isinstance(error, UsageError) else 1
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted; nothing was written", err=True)
        return 130
    except BrokenPipeError:  # the reader of our output went away, which is its right
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123
        return 0
    except Exception as error:
        if debug:
            raise
        click.echo(_unforeseen(error).render(), err=True)
        return 1


def _unforeseen(error: Exception) -> VitrewriteError:
    if isinstance(error, OSError) and error.strerror:  # a full disk, a terminal that went away
        place = f" {shown(error.filename)}" if error.filename is not None else ""
        return FileError("VR700", f"cannot use{place or ' a file'}: {error.strerror.lower()}")
    if isinstance(error, ValueError) and "null byte" in str(error):
        return FileError("VR700", "cannot use a file: no file name holds a NUL")
    return VitrewriteError(
        "VR999",
        f"internal error: {type(error).__name__}: {error}",
        suggestion="this is a bug of vitrewrite; --debug shows where",
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Warnings of libraries are not for users of the command."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
