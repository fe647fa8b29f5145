"""The first steps: what there is, what it means, and a spec to begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

import vitrewrite as vr
from vitrewrite.cli.listing import CLAUSES
from vitrewrite.cli.topics import TOPICS
from vitrewrite.language.tokens import VERBS

from .invoke import invoke


def test_list_takes_patterns() -> None:
    names = [line.split()[0] for line in invoke("list", "models", "vit_*dinov2*").out.splitlines()]
    assert "vit_base_patch14_dinov2" in names
    assert all(name.startswith("vit_") and "dinov2" in name for name in names)
    assert [e["name"] for e in invoke("list", "passes", "LoRa", "fpet", "--json").json["passes"]]
    assert invoke("list", "specs", "lora_qv").out.split()[0] == "lora_qv"
    result = invoke("list", "passes", "lroa")
    assert (result.status, result.codes) == (1, ["VR895"])
    assert "did you mean 'lora'?" in result.err


def test_every_verb_and_topic_is_explained() -> None:
    assert set(VERBS) <= CLAUSES.keys()
    for topic in ("selectors", "selector", "overrides", "data", "weights", *TOPICS):
        result = invoke("explain", topic)
        assert result.status == 0
        assert result.out.strip()
    assert "selectors" in invoke("explain", "selectros").err


def test_numbers_with_k(here: Path) -> None:
    assert vr.parse("require params < 8k").requires == vr.parse("require params < 8K").requires
    assert invoke("plan", "train head\nrequire trainable < 1k", "model=tiny.py:build").status == 0


def test_new(here: Path) -> None:
    result = invoke("new", "mine.peft")
    assert (result.status, result.out) == (0, "written   mine.peft\n")
    assert invoke("fmt", "--check", "mine.peft").status == 0
    assert invoke("plan", "mine.peft", "model=tiny.py:build").status == 0
    assert vr.parse(here / "mine.peft").model.name == "vit_base"  # type: ignore[union-attr]
    assert invoke("new", "mine.peft").codes == ["VR896"]
    assert invoke("new", "mine.txt").codes == ["VR896"]
    assert invoke("new", "other.peft", "--model", "vit_bsae").codes == ["VR310"]
    assert not (here / "other.peft").exists()


@pytest.mark.parametrize("spec", ["fpet_lora", "bi_lora"])
def test_cp(here: Path, spec: str) -> None:
    assert invoke("cp", spec).status == 0
    assert vr.parse(here / f"{spec}.peft").clauses == vr.parse(spec).clauses
    assert invoke("cp", spec).codes == ["VR896"]
    assert invoke("cp", spec, "again.peft").status == 0
    assert invoke("cp", "fpet_lroa").codes == ["VR226"]
