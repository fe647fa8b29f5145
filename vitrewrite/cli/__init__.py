"""The command line: what each command takes, in `commands`; errors and exit status, here."""

from __future__ import annotations

import contextlib
import os
import sys

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
    reporting,
    results,
    showing,
    starting,
    tuning,
    weighing,
)
from .output import Output, tell

__all__ = [
    "anatomy",
    "benching",
    "checking",
    "commands",
    "deltas",
    "packing",
    "palettes",
    "profiling",
    "reporting",
    "results",
    "run",
    "showing",
    "starting",
    "tuning",
    "weighing",
]


def run(argv: list[str]) -> int:
    """Runs one command line and returns its exit status; never raises."""
    debug = "--debug" in argv
    argv = [a for a in argv if a != "--debug"]
    output = Output("--json" in argv)
    try:
        # Outside its standalone mode click leaves errors and exit statuses to us.
        status = commands.cli.main(argv, "vitrewrite", standalone_mode=False, obj=output)
        return status if isinstance(status, int) else 0
    except click.ClickException as error:
        error.show()
        output.finish([_usage(error)])
        return 2
    except VitrewriteError as error:
        tell(error)
        output.finish([error])
        if debug:
            raise
        return 2 if isinstance(error, UsageError) else 1
    except (KeyboardInterrupt, click.Abort):
        stopped = VitrewriteError("VR894", "interrupted; nothing was written")
        click.echo(stopped.message, err=True)
        output.finish([stopped])
        return 130
    except SystemExit as end:
        return _ended(end)
    except Exception as error:
        if debug:
            raise
        unforeseen = _unforeseen(error)
        tell(unforeseen)
        with contextlib.suppress(OSError):  # that may be what is wrong
            output.finish([unforeseen])
        return 1


def _usage(error: click.ClickException) -> UsageError:
    """What click says about a command line, as an error of ours."""
    context = getattr(error, "ctx", None)
    help_ = f"see '{context.command_path} --help'" if context else None
    return UsageError("VR893", error.format_message(), suggestion=help_)


def _ended(end: SystemExit) -> int:
    """The status where click itself ends: the shell was answered, or a reader went away."""
    if "_VITREWRITE_COMPLETE" in os.environ:
        return int(end.code or 0)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123
    return 0  # which is its right


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
