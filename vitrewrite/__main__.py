"""The `vitrewrite` command. Importing this module imports neither torch nor timm."""

from __future__ import annotations

import contextlib
import gc
import io
import signal
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status is 0, 1 (spec, model or claim wrong) or 2 (usage)."""
    from .cli import run

    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it cleans up, too
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that its encoding lacks
    status = run(list(sys.argv[1:] if argv is None else argv))
    if argv is None:
        gc.freeze()  # the process ends: to search all of torch for garbage takes it another second
    return status


if __name__ == "__main__":
    sys.exit(main())
