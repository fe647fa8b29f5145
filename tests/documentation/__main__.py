"""`python -m tests.documentation [PAGE...]`: what of README and pages is not as they say."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click

from .blocks import pages
from .running import verdicts
from .stage import prepare


def main(chosen: list[str]) -> int:
    """Run pages, and tell of each command and block what came of it."""
    failed = 0
    for page in chosen or pages():
        with tempfile.TemporaryDirectory() as folder:
            prepare(Path(folder))
            for verdict in verdicts(page, Path(folder)):
                failed += bool(verdict.wrong)
                state = "FAILS" if verdict.wrong else "ok   "
                told = f"  ({verdict.told})" if verdict.told else ""
                click.echo(f"{state}  {verdict.where}  {verdict.what}{told}")
                if verdict.wrong:
                    click.echo(verdict.wrong)
    click.echo(f"{failed} of README and pages are not as they say" if failed else "all as they say")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
