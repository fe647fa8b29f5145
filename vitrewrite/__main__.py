"""The `vitrewrite` command. Importing this module imports neither torch nor timm."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status is 0, 1 (spec, model or claim wrong) or 2 (usage)."""
    from .cli import run

    return run(list(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
