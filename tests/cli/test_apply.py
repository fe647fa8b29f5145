"""What `apply` writes and prints."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from .invoke import COUNTS, FILES, LORA, invoke


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
    assert report["tokens"] == [17, 17, 17]
    lora, head = report["clauses"]
    assert lora["sites"] == [f"blocks[{i}].attn.{r}" for i in (0, 1) for r in "qv"]
    assert (lora["line"], head["line"]) == (5, 6)
    assert head["sites"] == ["head"]
    claims = {c["claim"]: (c["measured"], c["holds"]) for c in report["claims"]}
    assert claims == {
        "trainable == 1024 excluding head": (1024, True),
        "identity at init": (0.0, True),
    }


def test_the_macs_of_the_report_are_those_of_the_arithmetic(made: Path) -> None:
    report = json.loads((made / "out" / "report.json").read_text())
    sites, tokens, rank, width = 4, 17, 4, 32
    assert report["macs"] - report["macs_lowered"] == sites * tokens * rank * (width + width)


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


@pytest.mark.usefixtures("without_graphs")
def test_model_on_the_command_line_and_its_arguments(here: Path) -> None:
    (here / "bare.peft").write_text("insert lora(rank=4) at blocks[*].attn.{q, v}\n")
    result = invoke("apply", "bare.peft", "model=tiny.py:build(num_classes=3)", "depth=1", "--json")
    assert result.status == 0
    assert result.json["clauses"][0]["sites"] == ["blocks[0].attn.q", "blocks[0].attn.v"]
    lock = json.loads((here / "bare-tiny_build" / "lock.json").read_text())
    assert lock["model_options"] == {"num_classes": 3, "depth": 1}
    assert invoke("verify", "bare-tiny_build").status == 0


@pytest.mark.usefixtures("without_graphs")
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
