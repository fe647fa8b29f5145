"""A fixed part of the zoo: what `docs/coverage.md` says of it still holds.

A tenth under `make zoo`, every third model of that at every change.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.zoo.check import check
from tests.zoo.lists import subject

COVERAGE = json.loads((Path(__file__).parents[2] / "docs" / "coverage.json").read_text())
LIBRARIES = ("timm", "transformers", "torchvision")  # those that tests may import
TENTH = [
    found
    for found in COVERAGE["models"]
    if found["key"].partition(":")[0] in LIBRARIES
    and subject(found["key"]).in_ci
    and found["outcome"] != "does not run"
]
# A minute and more each.
COSTLY = (
    "timm:sam2_hiera_tiny", "timm:gemma4_vit_167m", "timm:coatnet_rmlp_1_rw_224",
    "transformers:TableTransformerForObjectDetection",
)  # fmt: skip
PARTS = [
    pytest.param(
        found,
        id=found["key"],
        marks=[pytest.mark.slow] if number % 3 or found["key"] in COSTLY else [],
    )
    for number, found in enumerate(TENTH)
]


def test_the_tenth_is_about_a_tenth() -> None:
    counted = [f for f in COVERAGE["models"] if f["key"].partition(":")[0] in LIBRARIES]
    assert 0.05 < len(TENTH) / len(counted) < 0.15


def test_nothing_is_wrong() -> None:
    assert [f["key"] for f in COVERAGE["models"] if f["outcome"] == "wrong"] == []


@pytest.mark.filterwarnings("ignore")  # of the libraries
@pytest.mark.parametrize("known", PARTS)
def test_as_it_was(known: dict[str, Any]) -> None:
    found = check(subject(known["key"]))
    assert (found.outcome, found.why[:5]) == (known["outcome"], known["why"][:5])
    assert found.sizes == known["sizes"]
