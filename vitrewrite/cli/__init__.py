"""The command line: what each command takes, in `commands`; errors and exit status, here."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

import click

from ..errors import UsageError, VitrewriteError
from . import commands


def run(argv: list[str]) -> int:
    """Runs one command line and returns its exit status; never raises."""
    debug = "--debug" in argv
    argv = [a for a in argv if a != "--debug"]
    try:
        with _quiet():
            commands.cli.main(args=argv, prog_name="vitrewrite", standalone_mode=False)
        return 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return 2
    except VitrewriteError as error:
        click.echo(error.render(), err=True)
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
        bug = VitrewriteError(
            "VR999",
            f"internal error: {type(error).__name__}: {error}",
            suggestion="this is a bug of vitrewrite; --debug shows where",
        )
        click.echo(bug.render(), err=True)
        return 1


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Warnings of libraries are not for users of the command."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
