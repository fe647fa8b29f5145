"""`report`, and the JSON of commands that write or explain."""

from __future__ import annotations

import json
from pathlib import Path

from tests.folders import reseal

from .invoke import invoke


def test_report_is_what_the_folder_says(inside: Path) -> None:
    result = invoke("report", "out", "out")
    assert result.status == 0, result.err
    one = result.out.split("\n\nout: ")[0]
    assert one.startswith(
        "out: lora on tiny.py:build, weights random (seed 0)\n\n+  5  insert lora"
    )
    assert "4 sites  1,024 parameters" in one
    assert "claim  ok  trainable == 1024 excluding head  measured 1,024" in one
    assert result.out.count("parameters  ") == 2
    found = invoke("report", "out", "--json").json["reports"][0]
    assert found == {"folder": "out", **json.loads(Path("out/report.json").read_text())}


def test_report_of_what_is_none(inside: Path) -> None:
    assert invoke("report", ".").codes == ["VR703"]
    for content in ("[]", "{}", '{"clauses": [1]}'):
        Path("out/report.json").write_text(content)
        assert invoke("report", "out").codes == ["VR715"]
        reseal("out")
        assert invoke("report", "out").codes == ["VR703"]


def test_explain_as_json() -> None:
    found = invoke("explain", "lora", "--json").json
    assert found["text"] + "\n" == invoke("explain", "lora").out
    rank = next(each for each in found["options"] if each["name"] == "rank")
    assert (rank["type"], rank["default"], rank["minimum"]) == ("int", 8, 1)
    assert invoke("explain", "tune", "--json").json["options"]
    assert invoke("explain", "VR203", "--json").json.keys() == {"topic", "text"}
    (error,) = invoke("explain", "lroa", "--json").json["errors"]
    assert error["code"] == "VR229"
    assert "did you mean 'lora'" in error["help"]


def test_written_specs_as_json(here: Path) -> None:
    assert invoke("new", "mine.peft", "--json").json == {"out": "mine.peft"}
    failed = invoke("new", "mine.peft", "--json")
    assert (failed.status, failed.json["ok"], failed.json["errors"][0]["code"]) == (
        1,
        False,
        "VR896",
    )
    assert invoke("cp", "lora_qv", "--json").json == {"out": "lora_qv.peft"}
    assert invoke("cp", "lora_qvv", "--json").json["errors"][0]["help"] == "did you mean 'lora_qv'?"


def test_formatted_as_json(here: Path) -> None:
    Path("a.peft").write_text("train   head\n")
    Path("bad.peft").write_text("train head\nisnert lora()\n")
    checked = invoke("fmt", "--check", "a.peft", "--json")
    assert (checked.status, checked.json) == (1, {"would_change": ["a.peft"]})
    failed = invoke("fmt", "bad.peft", "a.peft", "--json")
    assert (failed.status, failed.json["formatted"]) == (1, ["a.peft"])
    (error,) = failed.json["errors"]
    assert (error["file"], error["line"], error["source"]) == ("bad.peft", 2, "isnert lora()")
    Path("a.peft").write_text("train   head\n")
    assert invoke("fmt", "bad.peft", "a.peft").out == "formatted  a.peft\n"
