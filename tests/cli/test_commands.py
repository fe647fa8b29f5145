"""Each command other than `apply` does what it says, on a tiny model."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import vitrewrite
import vitrewrite as vr
from vitrewrite import catalog
from vitrewrite.cli.common import busy, progress_bar
from vitrewrite.folder.reading import load_folder
from vitrewrite.text import EveryMinute

from .invoke import COUNTS, FILES, LORA, invoke, snapshot

# -- plan, check, sites ---------------------------------------------------------------------------


def test_plan(here: Path) -> None:
    before = snapshot(here)
    result = invoke("plan", "lora.peft")
    assert (result.status, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0] == "lora on tiny.py:build, weights random (seed 0)"
    assert lines[2].split()[:2] == ["+", "5"]
    assert lines[3].split()[:2] == ["~", "6"]
    assert "measured 1,024" in result.out
    assert "measured by apply and verify" in result.out
    found = invoke("plan", "lora.peft", "--json").json
    assert found.keys() >= COUNTS
    assert found["clauses"][0]["change"] == "+"
    assert found["claims"][1] == {"claim": "identity at init", "measured": None, "holds": None}
    assert snapshot(here) == before


def test_plan_and_report_agree(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    found = invoke("plan", "lora.peft", "--json").json
    report = json.loads((made / "out" / "report.json").read_text())
    for key in COUNTS - {"claims"}:
        assert found[key] == report[key]


def test_check(here: Path) -> None:
    (here / "bad.peft").write_text("insert lroa() at blocks\ntrain\n")
    result = invoke("check", "lora.peft", "bad.peft", "lora_qv.peft")
    assert result.status == 1
    assert result.codes == ["VR201", "VR114", "VR101"]
    assert result.out.splitlines() == [
        "ok     lora.peft", "error  bad.peft", "error  lora_qv.peft",
        "1 of 3 specs hold: 2 claims, 0 rows",
    ]  # fmt: skip
    found = invoke("check", "lora.peft", "bad.peft", "--json")
    assert found.status == 1
    first, second = found.json["specs"]
    assert first["ok"]
    assert [claim["measured"] for claim in first["claims"]] == [1024, None]
    assert [error.pop("code") for error in second["errors"]] == ["VR201", "VR114"]
    bad = {"spec": "bad.peft", "ok": False, "errors": second["errors"], "claims": []}
    assert second == bad
    assert [error["code"] for error in found.json["errors"]] == ["VR201", "VR114"]
    assert invoke("check", "lora.peft", "rank=65").codes == ["VR203"]
    assert invoke("check", "train blocks where dim >= 3", "lora.peft").status == 0


def test_sites(here: Path) -> None:
    result = invoke("sites", "tiny.py:build", "depth=3", "num_classes=7")
    assert (result.status, result.err) == (0, "")
    assert "head 32 -> 7" in result.out
    assert "VisionTransformer: 3 blocks, 13 linear layers" in result.out
    assert "blocks[0:3]" in result.out
    found = invoke("sites", "tiny.py:build(depth=3)", "--json").json
    assert len(found["blocks"]) == 3


# -- list, explain, fmt, diff ---------------------------------------------------------------------


def test_list() -> None:
    for what, some in (("passes", "lora"), ("specs", "lora_qv"), ("models", "vit_base")):
        result = invoke("list", what)
        assert (result.status, result.err) == (0, "")
        lines = {line.split()[0]: line for line in result.out.splitlines()}
        found = {
            entry["name"]: entry["about"] for entry in invoke("list", what, "--json").json[what]
        }
        assert list(found) == list(lines)
        assert found[some]
        assert found[some] in lines[some]
    assert set(catalog.passes()) == {
        e["name"] for e in invoke("list", "passes", "--json").json["passes"]
    }


def test_explain() -> None:
    assert invoke("explain", "VR203").out.startswith("VR203: value out of range\n")
    assert invoke("explain", "vr203").out == invoke("explain", "VR203").out
    page = invoke("explain", "lora").out
    assert page.startswith("LoRA: ")
    assert "rank: int, default 8, minimum 1" in page
    for clause in ("insert", "prepend", "replace", "stitch", "add", "drop", "train", "freeze",
                   "require", "param", "let", "include", "tune", "model"):  # fmt: skip
        assert clause in invoke("explain", clause).out
    assert invoke("explain", "lroa").codes == ["VR229"]
    assert "did you mean 'lora'" in invoke("explain", "lroa").err
    assert invoke("explain", "VR000").codes == ["VR901"]


def test_fmt(here: Path) -> None:
    messy, clean = "train   head   # all\n\n\n\nfreeze norm\n", "train head  # all\n\nfreeze norm\n"
    (here / "a.peft").write_text(messy)
    (here / "a.peft").chmod(0o640)
    (here / "link.peft").symlink_to("a.peft")
    result = invoke("fmt", "--check", "link.peft", "lora.peft")
    assert (result.status, result.out) == (1, "would change  link.peft\n")
    assert (here / "a.peft").read_text() == messy
    result = invoke("fmt", "link.peft", "lora.peft")
    assert (result.status, result.out) == (0, "formatted  link.peft\n")
    assert (here / "a.peft").read_text() == clean
    assert (here / "a.peft").stat().st_mode & 0o777 == 0o640
    assert (here / "link.peft").is_symlink()
    result = invoke("fmt", "a.peft", "lora.peft", "--check")
    assert (result.status, result.out) == (0, "")
    (here / "b.peft").write_text("train (\n")
    (here / "c.peft").write_text(messy)
    result = invoke("fmt", "b.peft", "c.peft")
    assert (result.status, result.codes) == (1, ["VR108"])
    assert (here / "c.peft").read_text() == clean
    assert {p.name for p in here.iterdir()} == {
        "a.peft", "b.peft", "c.peft", "link.peft", "lora.peft", "tiny.py",
    }  # fmt: skip


def test_diff(inside: Path) -> None:
    (inside / "other.peft").write_text(LORA.replace("= 4", "= 8"))
    result = invoke("diff", "lora.peft", "other.peft")
    assert result.status == 0
    assert "-insert lora(rank=4) at blocks[*].attn.{q, v}" in result.out
    assert "+insert lora(rank=8) at blocks[*].attn.{q, v}" in result.out
    assert invoke("diff", "lora.peft", "lora.peft").out == "no difference\n"
    assert invoke("diff", "out", "lora.peft").out == "no difference\n"
    assert invoke("diff", "out", "out", "--json").json == {"differences": []}
    assert invoke("apply", "lora.peft", "seed=1", "--out", "b", "--no-weights").status == 0
    found = invoke("diff", "out", "b", "--json").json["differences"]
    assert found == ["weights: random (seed 0) -> random (seed 1)"]


# -- verify, lower, bench -------------------------------------------------------------------------


@pytest.mark.slow
def test_verify_folder_and_spec(inside: Path) -> None:
    before = snapshot(inside)
    result = invoke("verify", "out")
    assert (result.status, result.err) == (0, "")
    marks = {line.split()[0] for line in result.out.splitlines()}
    assert marks == {"ok", "open"}
    assert "open   the model itself: not checked (building 'tiny.py:build' runs code" in result.out
    assert "model.py runs alone and gives the same output" in result.out
    found = invoke("verify", "lora.peft", "--json")
    assert found.status == 0
    assert found.json["ok"] is True
    assert {"check", "holds", "measured", "note"} == found.json["checks"][0].keys()
    assert snapshot(inside) == before
    assert not list((inside / "out").glob("__pycache__"))


@pytest.mark.usefixtures("without_graphs")
def test_verify_says_what_was_changed(inside: Path) -> None:
    with (inside / "out" / "plan.md").open("a") as file:
        file.write("and more")
    result = invoke("verify", "out", "--json")
    assert (result.status, result.codes) == (1, ["VR715"])
    assert "'out/plan.md' is not what was written" in result.err
    (inside / "out" / "graph.svg").unlink()
    assert invoke("verify", "out").codes == ["VR715", "VR715"]


@pytest.mark.usefixtures("without_graphs")
def test_lower(inside: Path) -> None:
    rewritten = load_folder(Path("out"))
    for tensor in rewritten.delta().values():
        tensor.copy_(torch.randn_like(tensor) * 0.1)
    trained = {k: v.clone() for k, v in rewritten.delta().items()}
    vr.emit(rewritten, "out")
    found = invoke("lower", "out", "--out", "low", "--json").json
    assert found["lowered"] is True
    assert found["macs"] == found["macs_lowered"]
    assert found["params"]["total"] == 33_578 - 1024
    assert found["max_error"] < 1e-5
    weights = load_file("low/weights.safetensors")
    assert torch.equal(weights["head.weight"], trained["head.weight"])
    update = trained["blocks.0.attn.q.lora.up"] @ trained["blocks.0.attn.q.lora.down"]
    base = load_file("out/weights.safetensors")["blocks.0.attn.qkv.weight"]
    torch.testing.assert_close(weights["blocks.0.attn.qkv.weight"][:32], base[:32] + update)
    assert found["lowering"]["error"]["float32"]["relative"] == found["max_error"]
    assert invoke("verify", "low").status == 0
    assert invoke("lower", "low", "--out", "lower").codes == ["VR705"]
    assert {p.name for p in (inside / "low").iterdir()} == FILES | {"originals.safetensors"}
    assert set(load_file("low/originals.safetensors")) == {
        f"blocks.{i}.attn.{name}"
        for i in range(2)
        for name in ("qkv.weight", "qkv_lora.down", "qkv_lora.up")
    }
    result = invoke("lower", "out", "--out", "low")
    assert (result.status, result.err) == (0, "")
    assert re.search(r"modules +float32 +bfloat16 +float16\n", result.out)
    assert re.search(
        r"insert lora\(rank=4\) at blocks\[\*\]\.attn\.\{q, v\} +2 -> 0 +\d", result.out
    )
    assert result.out.endswith("\nwritten   low/\n")


@pytest.mark.usefixtures("without_graphs", "without_processes")
def test_lower_and_undo(inside: Path) -> None:
    assert invoke("lower", "out", "--out", "low").status == 0
    result = invoke("lower", "low", "--undo", "--out", "back")
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith("restored  ")
    assert {p.name for p in (inside / "back").iterdir()} == FILES
    for name in ("weights.safetensors", "delta.safetensors"):
        first, second = (load_file(inside / folder / name) for folder in ("out", "back"))
        assert first.keys() == second.keys()
        assert all(torch.equal(v, second[k]) for k, v in first.items())
    assert invoke("verify", "back").status == 0
    assert invoke("lower", "back", "--undo", "--out", "again").codes == ["VR706"]
    found = invoke("lower", "low", "--undo", "--out", "low", "--json").json  # in place
    assert (found["lowered"], found["max_error"]) == (False, None)
    assert {p.name for p in (inside / "low").iterdir()} == FILES


def test_bench(here: Path) -> None:
    common = ("bench", "lora.peft", "--rounds", "1", "--batch", "2", "--threads", "1")
    result = invoke(*common, "--out", "b.json", "--svg", "b.svg")
    assert (result.status, result.err) == (0, "")
    assert "lora on tiny.py:build: batch 2, float32, 1 interleaved round\n" in result.out
    assert "\ntraining step\n" in result.out
    found = json.loads((here / "b.json").read_text())
    assert found["forward"].keys() == found["training"].keys() == {"base", "rewritten", "lowered"}
    assert found["forward"]["base"]["ratio"] == 1
    assert found["threads"] == 1
    assert found["macs"]["base"] == found["macs"]["lowered"] < found["macs"]["rewritten"]
    assert (here / "b.svg").read_text().strip().startswith("<svg ")
    assert {p.name for p in here.iterdir()} - {"__pycache__"} == {
        "tiny.py", "lora.peft", "b.json", "b.svg",
    }  # fmt: skip
    again = invoke(*common, "--json", "--no-train", "--dtype", "bfloat16").json
    assert again.keys() == found.keys()
    assert again["training"] == {}
    assert again["dtype"] == "bfloat16"


# -- the command itself ---------------------------------------------------------------------------


def test_version_help_and_debug(here: Path) -> None:
    assert invoke("--version").out == f"vitrewrite {vitrewrite.__version__}\n"
    assert invoke("-h").status == 0
    for command in ("apply", "plan", "check", "sites", "list", "explain", "verify", "lower",
                    "pack", "diff", "bench", "fmt"):  # fmt: skip
        assert f"\n  {command} " in invoke("--help").out
        result = invoke(command, "--help")
        assert (result.status, result.err) == (0, "")
    assert invoke("--debug", "explain", "lora").status == 0
    with pytest.raises(vitrewrite.VitrewriteError):
        invoke("explain", "lroa", "--debug")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_cell_of_a_notebook_gets_a_line_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with busy("planning"), progress_bar() as progress:
        progress("measuring", 0.5)
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]
    monkeypatch.setattr(EveryMinute, "seconds", 0.01)
    with busy("planning"):
        time.sleep(0.1)
    told = sys.stderr.getvalue().splitlines()  # type: ignore[attr-defined]
    assert told[:2] == ["planning: 1 minute", "planning: 2 minutes"]


def test_progress_is_for_terminals_and_without_colour_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with busy("planning"), progress_bar() as progress:
        progress("measuring", 0.5)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("TERM", "xterm-256color")
    for no_colour in ("", "1"):
        monkeypatch.setenv("NO_COLOR", no_colour)
        monkeypatch.setattr(sys, "stderr", Terminal())
        with busy("planning"):
            pass
        with progress_bar() as progress:
            progress("measuring", 0.5)
        shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
        assert "planning" in shown
        assert "measuring" in shown
        assert bool(re.search(r"\x1b\[[\d;]*m", shown)) == (not no_colour)
    assert capsys.readouterr().out == ""


def process(shell: str) -> subprocess.CompletedProcess[str]:
    command = shell.replace("vitrewrite", f"{sys.executable} -m vitrewrite", 1)
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False, timeout=60
    )


def test_a_reader_that_goes_away_is_no_error() -> None:
    done = process("vitrewrite explain lora | head -1; exit ${PIPESTATUS[0]}")
    assert (done.returncode, done.stderr) == (0, "")
    done = process("vitrewrite list specs | true; exit ${PIPESTATUS[0]}")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_an_output_that_is_full_is_no_bug_of_ours() -> None:
    done = process("vitrewrite explain lora > /dev/full")
    assert (done.returncode, done.stderr) == (
        1,
        "VR700 cannot use a file: no space left on device\n",
    )


def test_names_that_the_terminal_cannot_show(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xe2\x9c\x93.peft"))
    path.write_text("train head\n")
    command = [sys.executable, "-m", "vitrewrite", "check", str(path)]
    for encoding in ("ascii", "utf-8"):
        done = subprocess.run(
            command,
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": encoding},
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.startswith(b"ok ")
