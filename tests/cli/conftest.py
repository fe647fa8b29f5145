"""What the tests of the command share: a folder with a tiny model and a spec."""

from __future__ import annotations

from pathlib import Path

import pytest

from .invoke import LORA, TINY


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with `tiny.py` and `lora.peft` in it and nothing else."""
    (tmp_path / "tiny.py").write_text(TINY)
    (tmp_path / "lora.peft").write_text(LORA)
    monkeypatch.chdir(tmp_path)
    return tmp_path
