"""`show sensitivity`: the allocation of a folder as a table and as a picture."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from .invoke import invoke

DECISIONS = {
    "blocks.0.attn.qkv.weight[q]": {"sensitive": 30, "kind": "structured", "parameters": 8},
    "blocks.0.mlp.fc1.bias": {"sensitive": 10, "kind": "vector", "parameters": 16},
    "blocks.1.attn.qkv.weight[q]": {"sensitive": 60, "kind": "entries", "parameters": 60},
    "norm.weight": {"sensitive": 0, "kind": "nothing", "parameters": 0},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    allocation = {"budget": 80, "tau": 100, "total": 84, "decisions": DECISIONS}
    report = {"allocations": {"sensitive(budget=80)": allocation}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    return tmp_path


def test_table(folder: Path) -> None:
    result = invoke("show", "sensitivity", str(folder))
    assert result.status == 0
    title, _, head, *rows = result.out.splitlines()
    assert title == "sensitive(budget=80): 100 sensitive entries buy 84 parameters"
    assert head.split() == ["0", "1", "all"]
    found = {row.split()[0]: row.split()[1:] for row in rows}
    assert found["attn.qkv.weight[q]"] == ["30.0", "60.0", "0.0", "90.0"]
    assert found["all"] == ["40.0", "60.0", "0.0", "100.0"]


def test_picture(folder: Path) -> None:
    svg = folder / "s.svg"
    assert invoke("show", "sensitivity", str(folder), "--svg", str(svg)).status == 0
    texts = [t.text for t in ET.parse(svg).getroot().iter("{http://www.w3.org/2000/svg}text")]
    assert {"30.0", "60.0", "10.0", "■", "●", "·"} <= set(texts)


def test_json(folder: Path) -> None:
    result = invoke("show", "sensitivity", str(folder), "--json")
    assert json.loads(result.out)["sensitive(budget=80)"]["tau"] == 100


@pytest.mark.parametrize("content", ["", "{}", '{"allocations": {}}'])
def test_other_folders(tmp_path: Path, content: str) -> None:
    (tmp_path / "report.json").write_text(content)
    result = invoke("show", "sensitivity", str(tmp_path))
    assert (result.status, result.codes) == (1, ["VR703"])
