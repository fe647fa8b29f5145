"""A part of the matrix: what `docs/coverage.md` says of it still holds.

A tenth under `make zoo`, half of that at every change.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.matrix.cell import cells, examine

COVERAGE = json.loads((Path(__file__).parents[2] / "docs" / "coverage.json").read_text())
CELLS = {(cell["method"], cell["architecture"]): cell for cell in COVERAGE["matrix"]}
NUMBERS = {key: int(hashlib.sha256("".join(key).encode()).hexdigest(), 16) for key in cells()}
TENTH = [key for key, number in NUMBERS.items() if number % 10 == 0]
PARTS = [
    pytest.param(key, id=" on ".join(key), marks=[pytest.mark.slow] if NUMBERS[key] % 20 else [])
    for key in TENTH
]


def test_the_table_is_of_this_matrix() -> None:
    assert list(CELLS) == cells()
    assert [key for key, cell in CELLS.items() if cell["outcome"] == "fails"] == []
    assert 0.05 < len(TENTH) / len(CELLS) < 0.15


@pytest.mark.parametrize("key", PARTS)
def test_as_it_was(key: tuple[str, str]) -> None:
    found: dict[str, Any] = examine(*key).to_dict()
    assert found == CELLS[key]
