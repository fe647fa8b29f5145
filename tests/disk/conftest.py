"""A folder to work in, where nobody waits for another process."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitrewrite.disk import claim


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(claim, "PATIENCE", 0.0)
    return tmp_path
