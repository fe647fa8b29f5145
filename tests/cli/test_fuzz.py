"""Random and mutated specs, files and overrides, through the command's entry function."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .fuzz import Case, cases
from .invoke import Result, invoke

COUNT = int(os.environ.get("VITREWRITE_FUZZ", "150"))
PROCESSES = int(os.environ.get("VITREWRITE_FUZZ_PROCESSES", "0"))


def written(case: Case, here: Path) -> list[str]:
    """The command line of a case, whose spec is written to a file."""
    path = here / "fuzzed.peft"
    path.write_bytes(case.text.encode("utf-8", "surrogatepass"))  # lone ones are no UTF-8
    overrides = [o for o in case.overrides if not o.startswith("-")]
    return ["plan" if case.plan else "check", path.name, *overrides]


def judge(result: Result, case: Case) -> None:
    assert result.status in (0, 1, 2), case
    if result.status == 0:
        assert result.err == "" or result.err.startswith("warning: "), case
    else:
        assert result.err, case
    assert len(result.err) < 100_000, case
    assert result.status == 0 or result.codes or "Error: " in result.err, case


def test_every_command_line_gets_an_answer(here: Path) -> None:
    seen = [0, 0, 0]
    for case in cases(COUNT, seed=COUNT):
        argv = written(case, here)
        try:
            result = invoke(*argv)
            judge(result, case)
        except Exception as error:
            raise AssertionError(f"{argv}\n{case!r}") from error
        seen[result.status] += 1
    assert {p.name for p in here.iterdir()} - {"__pycache__"} == {
        "tiny.py",
        "lora.peft",
        "fuzzed.peft",
    }
    assert seen[0] > COUNT // 50, seen
    assert seen[1] > COUNT // 4, seen


@pytest.mark.skipif(not PROCESSES, reason="VITREWRITE_FUZZ_PROCESSES is not set")
def test_every_process_gets_an_answer(here: Path) -> None:
    for case in cases(PROCESSES, seed=PROCESSES + 1):
        argv = [part.replace("\0", "").replace("\ud800", "") for part in written(case, here)]
        done = subprocess.run(
            [sys.executable, "-m", "vitrewrite", *argv],
            capture_output=True,
            check=False,
            timeout=300,
        )
        result = Result(done.returncode, done.stdout.decode(), done.stderr.decode())
        assert "Traceback" not in result.err, case
        assert "VR999" not in result.err, case
        judge(result, case)
