"""Each command does what it says, on a tiny model."""

from __future__ import annotations

import ast
import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import vitrewrite
from vitrewrite import catalog, files
from vitrewrite.cli.common import busy

from .invoke import LORA, TINY, invoke, snapshot

FILES = {
    *("model.py", "weights.safetensors", "delta.safetensors", "report.json", "lock.json"),
    *("test_model.py", "graph.svg", "plan.md"),
}
COUNTS = {"params", "macs", "macs_lowered", "flops", "tokens", "clauses", "claims"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds `tiny.py`, `lora.peft` and `out`, which `apply` wrote; not to be changed."""
    base = tmp_path_factory.mktemp("made")
    (base / "tiny.py").write_text(TINY)
    (base / "lora.peft").write_text(LORA)
    before = Path.cwd()
    os.chdir(base)
    try:
        assert invoke("apply", "lora.peft", "--out", "out").status == 0
    finally:
        os.chdir(before)
    return base


@pytest.fixture
def inside(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `made` as the current folder."""
    monkeypatch.chdir(shutil.copytree(made, tmp_path / "copy"))
    return Path.cwd()


# -- apply ----------------------------------------------------------------------------------------


def test_apply_writes_the_files_of_the_contract(made: Path) -> None:
    out = made / "out"
    assert {p.name for p in out.iterdir()} == FILES
    assert {p.name for p in made.iterdir()} - {"__pycache__"} == {"tiny.py", "lora.peft", "out"}
    report = json.loads((out / "report.json").read_text())
    assert report.keys() >= COUNTS
    assert report["params"] == {
        "total": 33_578, "trainable": 1354, "trainable_without_head": 1024,
    }  # fmt: skip
    assert report["flops"] == 2 * report["macs"]
    assert report["macs"] - report["macs_lowered"] == 2 * 2 * 17 * 4 * (32 + 32)
    assert report["tokens"] == [17, 17, 17]
    lora, head = report["clauses"]
    assert lora["sites"] == [f"blocks[{i}].attn.{r}" for i in (0, 1) for r in "qv"]
    assert (lora["line"], head["line"]) == (5, 6)
    assert head["sites"] == ["head"]
    claims = {c["claim"]: (c["measured"], c["holds"]) for c in report["claims"]}
    assert claims == {
        "trainable == 1024 excluding head": (1024, True), "identity at init": (0.0, True),
    }  # fmt: skip


def test_the_lock_says_how_to_make_it_again(made: Path) -> None:
    lock = json.loads((made / "out" / "lock.json").read_text())
    assert (lock["model"], lock["weights"], lock["seed"]) == ("tiny.py:build", "random", 0)
    assert lock["versions"].keys() == {"vitrewrite", "torch", "timm"}
    assert "insert lora(rank=4)" in lock["spec"]
    assert lock["files"].keys() == FILES - {"lock.json"}
    with safe_open(made / "out" / "delta.safetensors", "pt") as delta:
        metadata = delta.metadata()
        keys = set(delta.keys())
    assert metadata["spec_hash"] == lock["spec_hash"]
    assert metadata["base_fingerprint"] == lock["base_fingerprint"]
    assert {"vitrewrite", "torch"} <= metadata.keys()
    assert keys == {
        *(f"blocks.{i}.attn.{r}.lora.{t}" for i in (0, 1) for r in "qv" for t in ("up", "down")),
        *("head.weight", "head.bias"),
    }


def test_model_py_imports_nothing_but_torch(made: Path) -> None:
    tree = ast.parse((made / "out" / "model.py").read_text())
    names = [n for node in ast.walk(tree) if isinstance(node, ast.Import) for n in node.names]
    modules = {n.name.split(".")[0] for n in names}
    modules |= {
        (n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)
    }
    assert modules - {"torch", "safetensors"} <= set(sys.stdlib_module_names)
    top = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert "safetensors.torch" not in {node.module for node in top}  # only inside of `load`


def test_the_emitted_tests_pass(made: Path, tmp_path: Path) -> None:
    out = shutil.copytree(made / "out", tmp_path / "out")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_model.py"]
    done = subprocess.run(command, cwd=out, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert re.search(r"^[4-9] passed", done.stdout, re.MULTILINE)


def test_apply_prints_plan_checks_claims_and_folder(here: Path) -> None:
    result = invoke("apply", "lora.peft", "rank=2", "seed=3", "lora.scale=0.5", "--out", "x/y")
    assert result.codes == ["VR501"]  # the claim of rank 4
    (here / "lora.peft").write_text(LORA.replace("1024", "512"))
    result = invoke("apply", "lora.peft", "rank=2", "seed=3", "lora.scale=0.5", "--out", "x/y")
    assert (result.status, result.err) == (0, "")
    assert "weights random (seed 3)" in result.out
    assert "insert lora(rank=2, scale=0.5) at blocks[*].attn.{q, v}  4 sites" in result.out
    assert result.out.count("\nverified  ") >= 3
    assert "\nclaim     identity at init: 0" in result.out
    assert result.out.endswith("\nwritten   x/y/\n")
    assert (here / "x" / "y" / "model.py").is_file()


def test_apply_json_and_default_folder(here: Path) -> None:
    result = invoke("apply", "lora.peft", "--no-weights", "--json")
    assert (result.status, result.err) == (0, "")
    assert result.json.keys() >= COUNTS
    assert result.json["out"] == "lora-tiny_build"
    assert all(check["holds"] for check in result.json["checks"])
    assert {p.name for p in (here / "lora-tiny_build").iterdir()} == FILES - {"weights.safetensors"}
    assert "build()" in (here / "lora-tiny_build" / "test_model.py").read_text()


def test_model_on_the_command_line_and_its_arguments(here: Path) -> None:
    (here / "bare.peft").write_text("insert lora(rank=4) at blocks[*].attn.{q, v}\n")
    result = invoke("apply", "bare.peft", "model=tiny.py:build(num_classes=3)", "depth=1", "--json")
    assert result.status == 0
    assert result.json["clauses"][0]["sites"] == ["blocks[0].attn.q", "blocks[0].attn.v"]
    lock = json.loads((here / "bare-tiny_build" / "lock.json").read_text())
    assert lock["model_options"] == {"num_classes": 3, "depth": 1}
    assert invoke("verify", "bare-tiny_build").status == 0


def test_same_seed_same_bits_and_weights_from_a_file(here: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        assert invoke("apply", "lora.peft", f"seed={seed}", "--out", name).status == 0
    a, b, c = ((here / n / "weights.safetensors").read_bytes() for n in "abc")
    assert a == b
    assert a != c
    base = {k: v for k, v in load_file("a/weights.safetensors").items() if "lora" not in k}
    save_file(base, "base.safetensors")
    result = invoke("apply", "lora.peft", "weights=base.safetensors", "--out", "d", "--json")
    assert result.json["weights"] == "base.safetensors"
    again = load_file("d/weights.safetensors")
    assert all(torch.equal(again[k], v) for k, v in base.items())
    assert invoke("verify", "d").status == 0


def test_pretrained_weights_come_from_safetensors_of_the_hub(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    import timm

    small = {"depth": 1, "embed_dim": 24, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", **small)
    save_file(model.state_dict(), "hub.safetensors")
    asked = []

    def cached(repo_id: str, filename: str, revision: str | None) -> str:
        asked.append((repo_id.split("/")[0], filename))
        return str(here / "hub.safetensors")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    (here / "bare.peft").write_text("train head\n")
    options = [f"{k}={v}" for k, v in small.items()]
    result = invoke("apply", "bare.peft", "model=vit_tiny", "weights=pretrained", *options)
    assert (result.status, result.err) == (0, "")
    assert "weights pretrained" in result.out
    assert asked == [("timm", "model.safetensors")]
    made = load_file("bare-vit_tiny/weights.safetensors")
    assert all(torch.equal(made[k], v) for k, v in model.state_dict().items())


# -- all or nothing -------------------------------------------------------------------------------


def test_our_folder_is_replaced_and_others_are_refused(inside: Path) -> None:
    (inside / "out" / "extra.txt").write_text("a file that is gone afterwards")
    assert invoke("apply", "lora.peft", "--out", "out", "--no-weights").status == 0
    assert {p.name for p in (inside / "out").iterdir()} == FILES - {"weights.safetensors"}
    (inside / "empty").mkdir()
    assert invoke("apply", "lora.peft", "--out", "empty").status == 0
    (inside / "foreign").mkdir()
    (inside / "foreign" / "lock.json").write_text('{"made_by": "someone else"}')
    before = snapshot(inside)
    assert invoke("apply", "lora.peft", "--out", "foreign").codes == ["VR701"]
    assert invoke("apply", "lora.peft", "--out", "tiny.py").codes == ["VR701"]
    assert invoke("apply", "lora.peft", "--out", ".").codes == ["VR701"]
    assert invoke("apply", "lora.peft", "--out", "..").codes == ["VR701"]
    assert snapshot(inside) == before


def test_a_link_to_a_folder_stays_a_link(inside: Path) -> None:
    (inside / "link").symlink_to("out")
    assert invoke("apply", "lora.peft", "--out", "link", "--no-weights").status == 0
    assert (inside / "link").is_symlink()
    assert {p.name for p in (inside / "out").iterdir()} == FILES - {"weights.safetensors"}
    assert not list(inside.glob(".*"))


def test_a_failed_claim_writes_nothing(inside: Path) -> None:
    (inside / "lora.peft").write_text(LORA + "require macs <= 1K\nrequire params == 1\n")
    before = snapshot(inside)
    for command in ("apply", "plan", "check", "verify"):
        result = invoke(command, "lora.peft", *(["--out", "new"] if command == "apply" else []))
        assert (result.status, result.codes) == (1, ["VR501", "VR501"]), command
        assert "lora.peft:10:9: VR501 the claim 'macs <= 1000' does not hold" in result.err
    assert snapshot(inside) == before


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("name", ["_write_all", "save_delta", "_swap"])
def test_a_write_that_fails_leaves_the_old_output(
    inside: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before = snapshot(inside)
    monkeypatch.setattr(files, name, failing(OSError(errno.ENOSPC, "No space left on device")))
    for out in ("out", "new/folder"):
        result = invoke("apply", "lora.peft", "--out", out)
        assert (result.status, result.codes) == (1, ["VR702"])
        assert "No space left" in result.err
    monkeypatch.setattr(files, name, failing(KeyboardInterrupt()))
    result = invoke("apply", "lora.peft", "--out", "out")
    assert (result.status, result.err) == (130, "interrupted; nothing was written\n")
    assert snapshot(inside) == before


def test_a_rename_that_fails_brings_the_old_output_back(
    inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(inside)
    rename = Path.rename

    def only_aside(path: Path, target: Path) -> Path:
        if target.name == "out" and not path.name.endswith(".old"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", only_aside)
    assert invoke("apply", "lora.peft", "--out", "out").codes == ["VR702"]
    assert snapshot(inside) == before


def test_a_full_disk_that_safetensors_reports_in_its_own_way(
    inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    before = snapshot(inside)
    monkeypatch.setattr("safetensors.torch.save_file", failing(SafetensorError("No space left")))
    assert invoke("apply", "lora.peft", "--out", "out").codes == ["VR702"]
    assert snapshot(inside) == before


KILLED = """
import os, signal
from pathlib import Path
from vitrewrite import files
with files._replacing(Path("out")) as folder:
    (folder / "lock.json").write_text("half of it")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_leaves_the_old_output(inside: Path) -> None:
    before = snapshot(inside / "out")
    done = subprocess.run([sys.executable, "-c", KILLED], check=False)
    assert done.returncode == -9
    assert snapshot(inside / "out") == before
    assert invoke("verify", "out").status == 0


def test_a_run_killed_between_two_renames_is_made_good(inside: Path) -> None:
    (inside / "out").rename(inside / ".out.old")
    before = snapshot(inside / ".out.old")
    (inside / "bad.peft").write_text(LORA)
    with files._replacing(Path("out")):
        assert snapshot(inside / "out") == before
    assert invoke("apply", "lora.peft", "--out", "out").status == 0
    assert not list(inside.glob(".*"))
    (inside / ".out.old").mkdir()  # somebody else's folder is left alone
    (inside / ".out.old" / "data").write_text("precious")
    assert invoke("apply", "lora.peft", "--out", "out").codes == ["VR702"]
    assert (inside / ".out.old" / "data").read_text() == "precious"
    assert (inside / "out" / "model.py").is_file()


def test_a_termination_signal_is_an_interruption() -> None:
    program = """
import os, signal, sys
from vitrewrite.__main__ import main
from vitrewrite.cli import listing
listing.explanation = lambda topic: os.kill(os.getpid(), signal.SIGTERM)
sys.exit(main(["explain", "lora"]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (130, b"")


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
    assert result.codes == ["VR201", "VR113", "VR101"]
    assert result.out.splitlines() == [
        "ok     lora.peft", "error  bad.peft", "error  lora_qv.peft",
    ]  # fmt: skip
    found = invoke("check", "lora.peft", "bad.peft", "--json")
    assert found.status == 1
    assert found.json["specs"] == [
        {"spec": "lora.peft", "ok": True, "errors": []},
        {"spec": "bad.peft", "ok": False, "errors": ["VR201", "VR113"]},
    ]
    assert invoke("check", "lora.peft", "rank=65").codes == ["VR203"]
    assert invoke("check", "train blocks where dim >= 3", "lora.peft").status == 0


def test_sites(here: Path) -> None:
    result = invoke("sites", "tiny.py:build", "depth=3", "num_classes=7")
    assert (result.status, result.err) == (0, "")
    assert "head 32 -> 7" in result.out
    assert "blocks[2]" in result.out
    assert "blocks[3]" not in result.out
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


def test_verify_folder_and_spec(inside: Path) -> None:
    before = snapshot(inside)
    result = invoke("verify", "out")
    assert (result.status, result.err) == (0, "")
    assert all(line.startswith("ok     ") for line in result.out.splitlines())
    assert "model.py runs alone and gives the same output" in result.out
    found = invoke("verify", "lora.peft", "--json")
    assert found.status == 0
    assert found.json["ok"] is True
    assert {"check", "holds", "measured", "note"} == found.json["checks"][0].keys()
    assert snapshot(inside) == before
    assert not list((inside / "out").glob("__pycache__"))


def test_verify_says_what_was_changed(inside: Path) -> None:
    with (inside / "out" / "plan.md").open("a") as file:
        file.write("and more")
    result = invoke("verify", "out", "--json")
    assert (result.status, result.codes) == (1, ["VR503"])
    assert result.json["ok"] is False
    assert "files as they were written: measured 1 changed\n  note: plan.md" in result.err


def test_lower(inside: Path) -> None:
    tensors = load_file("out/delta.safetensors")
    with safe_open("out/delta.safetensors", "pt") as file:
        metadata = file.metadata()
    trained = {k: torch.randn_like(v) * 0.1 for k, v in tensors.items()}
    save_file(trained, "out/delta.safetensors", metadata)
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
    # A lowered folder can be verified and lowered like any other.
    assert invoke("verify", "low").status == 0
    result = invoke("lower", "low", "--out", "lower")
    assert (result.status, result.err) == (0, "")
    assert result.out.endswith("written   lower/\n")
    again = load_file("lower/weights.safetensors")
    assert all(torch.equal(again[k], v) for k, v in weights.items())


def test_bench(here: Path) -> None:
    result = invoke("bench", "lora.peft", "--rounds", "1", "--batch", "2", "--out", "b.json")
    assert (result.status, result.err) == (0, "")
    assert "lora on tiny.py:build: batch 2, cpu" in result.out
    found = json.loads((here / "b.json").read_text())
    assert found["forward"].keys() == {"base", "rewritten", "lowered"}
    assert found["forward"]["base"]["ratio"] == 1
    assert found["macs"]["base"] == found["macs"]["lowered"] < found["macs"]["rewritten"]
    again = invoke("bench", "lora.peft", "--rounds", "1", "--batch", "2", "--json").json
    assert again.keys() == found.keys()


# -- the command itself ---------------------------------------------------------------------------


def test_version_help_and_debug(here: Path) -> None:
    assert invoke("--version").out == f"vitrewrite {vitrewrite.__version__}\n"
    assert invoke("-h").status == 0
    for command in ("apply", "plan", "check", "sites", "list", "explain", "verify", "lower",
                    "diff", "bench", "fmt"):  # fmt: skip
        assert f"\n  {command} " in invoke("--help").out
        result = invoke(command, "--help")
        assert (result.status, result.err) == (0, "")
    assert invoke("--debug", "explain", "lora").status == 0
    with pytest.raises(vitrewrite.VitrewriteError):
        invoke("explain", "lroa", "--debug")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_for_terminals_and_without_colour_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with busy("planning"):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("TERM", "xterm-256color")
    for no_colour in ("", "1"):
        monkeypatch.setenv("NO_COLOR", no_colour)
        monkeypatch.setattr(sys, "stderr", Terminal())
        with busy("planning"):
            pass
        shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
        assert "planning" in shown
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
        1, "VR700 cannot use a file: no space left on device\n",
    )  # fmt: skip


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
