"""A tenth of the matrix at every change: what `docs/coverage.md` says of it still holds."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.matrix.cell import cells, examine

COVERAGE = json.loads((Path(__file__).parents[2] / "docs" / "coverage.json").read_text())
CELLS = {(cell["method"], cell["architecture"]): cell for cell in COVERAGE["matrix"]}
TENTH = [
    key for key in cells() if int(hashlib.sha256("".join(key).encode()).hexdigest(), 16) % 10 == 0
]


def test_the_table_is_of_this_matrix() -> None:
    assert list(CELLS) == cells()
    assert [key for key, cell in CELLS.items() if cell["outcome"] == "fails"] == []
    assert 0.05 < len(TENTH) / len(CELLS) < 0.15


@pytest.mark.parametrize("key", TENTH, ids=" on ".join)
def test_as_it_was(key: tuple[str, str]) -> None:
    found: dict[str, Any] = examine(*key).to_dict()
    assert found == CELLS[key]
