"""`show sensitivity`: the allocation of a folder as a table and as a picture."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.folders import lock_for

from .invoke import invoke


def decision(
    block: int | str | None,
    tensor: str,
    shape: list[int],
    sensitive: int,
    kind: str,
    parameters: int,
) -> dict[str, object]:
    return {
        "block": block, "tensor": tensor, "shape": shape, "sensitive": sensitive, "kind": kind,
        "parameters": parameters,
    }  # fmt: skip


Q = "attn.qkv.weight[q]"
DECISIONS = {
    f"blocks.0.{Q}": decision(0, Q, [8, 8], 30, "structured", 8),
    "blocks.0.mlp.fc1.bias": decision(0, "mlp.fc1.bias", [32], 10, "vector", 32),
    f"blocks.1.{Q}": decision(1, Q, [8, 8], 40, "entries", 40),
    "down.0.norm.weight": decision(None, "down.norm.weight", [8], 12, "vector", 8),
    "down.1.norm.weight": decision(None, "down.norm.weight", [8], 8, "entries", 8),
    "norm.weight": decision(None, "norm.weight", [8], 0, "nothing", 0),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    allocation = {"budget": 80, "tau": 100, "total": 100, "decisions": DECISIONS}
    report = {"allocations": {"sensitive(budget=80)": allocation}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    lock_for(tmp_path)
    return tmp_path


def test_table(folder: Path) -> None:
    result = invoke("show", "sensitivity", str(folder))
    assert result.status == 0
    title, _, head, *rows = result.out.splitlines()
    assert title == "sensitive(budget=80): 100 sensitive entries buy 100 parameters"
    assert head.split() == ["0", "1", "other", "all"]
    found = {row.split()[0]: row.split()[1:] for row in rows}
    assert found[Q] == ["30.0", "40.0", "0.0", "70.0"]
    assert found["down.norm.weight"] == ["0.0", "0.0", "20.0", "20.0"]
    assert found["all"] == ["40.0", "40.0", "20.0", "100.0"]


def test_picture(folder: Path) -> None:
    svg = folder / "s.svg"
    assert invoke("show", "sensitivity", str(folder), "--svg", str(svg)).status == 0
    texts = [t.text for t in ET.parse(svg).getroot().iter("{http://www.w3.org/2000/svg}text")]
    assert {"30.0", "40.0", "20.0", "70.0", "■", "●·", "·", "other"} <= set(texts)


def test_json(folder: Path) -> None:
    result = invoke("show", "sensitivity", str(folder), "--json")
    assert json.loads(result.out)["sensitive(budget=80)"]["tau"] == 100
    svg = folder / "j.svg"
    drawn = invoke("show", "sensitivity", str(folder), "--json", "--svg", str(svg))
    assert json.loads(drawn.out) == {**json.loads(result.out), "out": str(svg)}
    assert ET.parse(svg).getroot().tag.endswith("}svg")


@pytest.mark.parametrize("content", ["", "{}", '{"allocations": {}}'])
def test_other_folders(tmp_path: Path, content: str) -> None:
    (tmp_path / "report.json").write_text(content)
    for _ in range(2):
        result = invoke("show", "sensitivity", str(tmp_path))
        assert (result.status, result.codes) == (1, ["VR703"])
        lock_for(tmp_path)


def test_layers_of_decoders_have_tables_of_their_own(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    made = report["allocations"]["sensitive(budget=80)"]["decisions"]
    for number in (10, 9):
        role, name = f"decoder.layers[{number}]", "cross_attn.in_proj_weight[q]"
        made[f"far.{number}.{name}"] = decision(role, name, [8, 8], 5 * number, "structured", 8)
    made["near.fc1.weight"] = decision(
        "pixel_decoder.layers[0]", "fc1.weight", [8, 8], 5, "structured", 8
    )
    (folder / "report.json").write_text(json.dumps(report))
    assert invoke("show", "sensitivity", str(folder)).codes == ["VR715"]
    lock_for(folder)
    out = invoke("show", "sensitivity", str(folder)).out
    blocks, pixels, layers = (part.splitlines() for part in out.split("\n\n")[1:4])
    assert blocks[0].split() == ["0", "1", "other", "all"]
    assert pixels[0].split() == ["pixel_decoder.layers", "0", "all"]
    assert [line.split() for line in layers] == [
        ["decoder.layers", "9", "10", "all"],
        ["cross_attn.in_proj_weight[q]", "22.5", "25.0", "47.5"],
        ["all", "22.5", "25.0", "47.5"],
    ]
    svg = folder / "s.svg"
    assert invoke("show", "sensitivity", str(folder), "--svg", str(svg)).status == 0
    texts = [t.text for t in ET.parse(svg).getroot().iter("{http://www.w3.org/2000/svg}text")]
    columns = ["0", "1", "pixel 0", "layer 9", "layer 10", "other"]
    assert [t for t in texts if t in columns] == columns
