"""Commands and snippets of a page, run and judged."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import vitrewrite as vr

from .blocks import ROOT, Block, Command, blocks, commands
from .output import differences
from .stage import LEFT_OUT, PRELUDES, elsewhere, substituted

_FAILS_ON_PURPOSE = ("vitrewrite check bad.peft",)
_OUT = re.compile(r"--out (\S+)")
_TAB = "<TAB>"
"""A command line that ends so is completed."""

_BEFORE = {"docs/search.md": "vitrewrite apply found.peft model=tiny.py:vit --out build/found"}


@dataclass(frozen=True)
class Verdict:
    """What came of a command or a block.

    Attributes:
        where: page and line.
        what: the command, or what kind of block it is.
        wrong: why it is not as the page says; empty if it is.
        told: why it was not run, or as what.
    """

    where: str
    what: str
    wrong: str = ""
    told: str = ""


def verdicts(page: str, folder: Path) -> Iterator[Verdict]:
    """All of a page: its commands in order, its specs, and then its Python as one program."""
    if page in _BEFORE:
        _run(_BEFORE[page], folder)
    program: list[Block] = []
    stood: set[str] = set()
    for block in blocks(page):
        where = f"{page}:{block.line}"
        known = elsewhere(page, block.text)
        if block.kind == "commands":
            for command in commands(block.text):
                yield _command(where, command, folder, stood)
        elif known or block.kind in ("make", "mermaid"):
            yield Verdict(where, block.kind, told=known or "not run here")
        elif block.kind == "python":
            program.append(block)
        elif block.kind == "json":
            json.loads(block.text)
            yield Verdict(where, "json")
        else:
            yield spec(where, block.text)
    if program:
        yield _python(page, program, folder)


def spec(where: str, text: str) -> Verdict:
    """A spec of a page parses without a warning."""
    try:
        warnings = vr.parse(text).warnings
    except vr.VitrewriteError as error:
        return Verdict(where, "spec", wrong=str(error))
    return Verdict(where, "spec", wrong="\n".join(map(str, warnings)))


def _command(where: str, command: Command, folder: Path, stood: set[str]) -> Verdict:
    """One command. What was made of stand-ins, `stood`, cannot print what a page shows."""
    for start, reason in LEFT_OUT.items():
        if command.line.startswith(start):
            return Verdict(where, command.line, told=reason)
    line = substituted(command.line)
    done = _run(line, folder)
    expected = 1 if line in _FAILS_ON_PURPOSE else 0
    told = "" if line == command.line else f"as: {line}"
    if not told and stood.intersection(line.split()):
        told = "of what stands in"
    if told:
        stood.update(_OUT.findall(line))
    printed = done.stdout + done.stderr
    if done.returncode != expected:
        return Verdict(where, command.line, f"exit status {done.returncode}\n{printed}", told)
    missing = [] if told else differences(command.shown, printed)
    wrong = "".join(f"\n    is not printed: {each}" for each in missing)
    return Verdict(where, command.line, f"{wrong}\n{printed}" if wrong else "", told)


def _run(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    words = shlex.split(line)
    if words[0] == "torchrun":
        words[:1] = [sys.executable, "-m", "torch.distributed.run"]
    else:
        words[:1] = [sys.executable, "-m", "vitrewrite"]
    if not line.endswith(_TAB):
        return _process(words, folder)
    typed = shlex.split(line.removesuffix(_TAB).replace("=", " = "))  # as bash splits it
    done = _process(
        words[:3],
        folder,
        _VITREWRITE_COMPLETE="bash_complete",
        COMP_WORDS=shlex.join(typed),
        COMP_CWORD=str(len(typed) - 1),
    )
    done.stdout = "  ".join(sorted(each.partition(",")[2] for each in done.stdout.splitlines()))
    return done


def _process(words: list[str], folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "200", **more}
    return subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def _python(page: str, program: list[Block], folder: Path) -> Verdict:
    """All Python of a page, in which what was made above is there below."""
    text = PRELUDES.get(page, "") + "\n".join(block.text for block in program)
    text = text.replace('"digits", Settings(lr=1e-3)', '"few", Settings(lr=1e-3, steps=1, batch=2)')
    (folder / "page.py").write_text(text)
    done = _process([sys.executable, "page.py"], folder)
    where = f"{page}:{', '.join(str(block.line) for block in program)}"
    return Verdict(where, "python", wrong=done.stderr[-3000:] if done.returncode else "")
