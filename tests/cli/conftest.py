"""What the tests of the command share: a folder with a tiny model and a spec."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from .invoke import LORA, TINY, invoke


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with `tiny.py` and `lora.peft` in it and nothing else."""
    (tmp_path / "tiny.py").write_text(TINY)
    (tmp_path / "lora.peft").write_text(LORA)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tiny.py`, `lora.peft` and `out`, which `apply` wrote; to be left as it is."""
    base = tmp_path_factory.mktemp("made")
    (base / "tiny.py").write_text(TINY)
    (base / "lora.peft").write_text(LORA)
    before = Path.cwd()
    os.chdir(base)
    try:
        assert invoke("apply", "lora.peft", "--out", "out").status == 0
    finally:
        os.chdir(before)
    return base


@pytest.fixture
def inside(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `made` as the current folder."""
    monkeypatch.chdir(shutil.copytree(made, tmp_path / "copy"))
    return Path.cwd()
