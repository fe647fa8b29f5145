"""README's first hour: `python -m tests.documentation.first_hour WHEEL FOLDER`.

The commands of that section are run as they stand there, in an empty folder with photographs and a
checkpoint, in a shell; `pip` installs the wheel. `make fresh` does that. `make docs` runs the same
commands with what is installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click

from .blocks import ROOT, Command, blocks, commands
from .output import differences
from .stage import photographs

_ACTIVATES = ". "


def hour() -> list[Command]:
    """The commands of the section."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first = text.count("\n", 0, text.index("## The first hour")) + 1
    last = text.count("\n", 0, text.index("## The language")) + 1
    own = [b for b in blocks("README.md") if first < b.line < last and b.kind == "commands"]
    return [command for block in own for command in commands(block.text)]


def walk(wheel: Path, folder: Path) -> int:
    """Run them one after the other, and tell what came of each; the first failure ends it."""
    folder.mkdir(parents=True)
    photographs(folder)
    active = ""
    for number, command in enumerate(hour(), 1):
        line = command.line.replace("'vitrewrite[", f"'{wheel.resolve()}[")
        line = line.replace("python3 ", f"{sys.executable} ", 1)
        done = _shell(active + line, folder)
        active += f"{line} && " if line.startswith(_ACTIVATES) else ""
        missing = differences(command.shown, done.stdout)
        failed = done.returncode != 0 or bool(missing)
        state = "FAILS" if failed else "ok   "
        click.echo(f"{state} {number:3}  {command.line}")
        if failed:
            click.echo("".join(f"    is not printed: {each}\n" for each in missing) + done.stdout)
            return 1
    click.echo(f"all {len(hour())} commands of the first hour do what README says")
    return 0


def _shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A line in a shell that knows nothing of this environment."""
    own = ("PYTHONPATH", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if key not in own}
    return subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env={**environment, "NO_COLOR": "1", "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


if __name__ == "__main__":
    raise SystemExit(walk(Path(sys.argv[1]), Path(sys.argv[2])))
