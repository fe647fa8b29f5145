"""A run that is killed at any step: the old output or the new one, and no debris after the next."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("killed.py")


@pytest.mark.parametrize(
    ("way", "what", "least"),
    [
        ("exchange", "folder", 40), ("renames", "folder", 40), ("exchange", "new", 15),
        ("exchange", "run", 15), ("exchange", "file", 6),
    ],
)  # fmt: skip
def test_killed_at_each_step(
    way: str, what: str, least: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, str(PROGRAM), way, what]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > least  # steps at which it was killed
