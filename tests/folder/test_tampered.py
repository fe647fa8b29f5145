"""Folders that somebody changed, with a lock file that agrees or without: never used in silence."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.invoke import LORA, TINY, invoke, snapshot
from tests.folders import edit, reseal


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `apply` wrote for a base, for another one, and for another spec."""
    base, before = tmp_path_factory.mktemp("outputs"), Path.cwd()
    (base / "tiny.py").write_text(TINY)
    (base / "lora.peft").write_text(LORA)
    (base / "other.peft").write_text(LORA.replace("{q, v}", "{q, k}"))
    os.chdir(base)
    try:
        for out, *arguments in (
            ("out", "lora.peft"), ("base", "lora.peft", "seed=1"), ("spec", "other.peft"),
        ):  # fmt: skip
            assert invoke("apply", *arguments, "--out", out).status == 0
    finally:
        os.chdir(before)
    return base


def rewritten(change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Writes the delta of `out` anew, after a change."""
    edit("out/delta.safetensors", change)


def without_metadata() -> None:
    tensors = load_file("out/delta.safetensors")
    save_file(tensors, "out/delta.safetensors")


def cut(name: str, size: int) -> None:
    path = Path("out", name)
    path.write_bytes(path.read_bytes()[:size])


def as_folder(name: str) -> None:
    Path("out", name).unlink()
    Path("out", name).mkdir()


def as_pipe(name: str) -> None:
    Path("out", name).unlink()
    os.mkfifo(Path("out", name))


def locked(**changes: object) -> None:
    """Another lock file, as somebody would write it who knows how."""
    reseal("out", **changes)


def replaced(old: str, new: str) -> None:
    path = Path("out/lock.json")
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


HEAD = "head.weight"
DELTA = "delta.safetensors"
# What is done to the delta, and what is said of it where the lock file agrees: by `lower`.
TAMPERED: dict[str, tuple[Callable[[], object], str]] = {
    "another-base": (lambda: shutil.copy("base/delta.safetensors", "out"), "VR720"),
    "another-spec": (lambda: shutil.copy("spec/delta.safetensors", "out"), "VR721"),
    "missing": (lambda: rewritten(lambda t: t.pop(HEAD)), "VR722"),
    "extra": (lambda: rewritten(lambda t: t.update(x=torch.zeros(1))), "VR722"),
    "shape": (lambda: rewritten(lambda t: t.update({HEAD: t[HEAD].T.contiguous()})), "VR722"),
    "nan": (lambda: rewritten(lambda t: t[HEAD].fill_(math.nan)), "VR716"),
    "infinite": (lambda: rewritten(lambda t: t[HEAD].fill_(-math.inf)), "VR716"),
    "others": (lambda: rewritten(lambda t: t[HEAD].add_(1)), "VR714"),
    "no-metadata": (without_metadata, "VR711"),
    "cut-in-the-tensors": (lambda: cut(DELTA, 3000), "VR711"),
    "cut-in-the-header": (lambda: cut(DELTA, 30), "VR711"),
    "empty": (lambda: cut(DELTA, 0), "VR711"),
    "weights-as-delta": (lambda: shutil.copy("out/weights.safetensors", f"out/{DELTA}"), "VR711"),
}
OTHERS: dict[str, tuple[Callable[[], object], str]] = {
    "gone": (lambda: Path("out", DELTA).unlink(), "VR715"),
    "folder": (lambda: as_folder(DELTA), "VR715"),
    "pipe": (lambda: as_pipe(DELTA), "VR715"),
    "program-pipe": (lambda: as_pipe("program.json"), "VR715"),
    "no-lock": (lambda: Path("out/lock.json").unlink(), "VR703"),
    "lock-folder": (lambda: as_folder("lock.json"), "VR703"),
    "lock-pipe": (lambda: as_pipe("lock.json"), "VR703"),
    "lock-cut": (lambda: cut("lock.json", 100), "VR703"),
    "lock-nested": (lambda: Path("out/lock.json").write_text("[" * 200_000), "VR703"),
    "lock-bytes": (lambda: Path("out/lock.json").write_bytes(b"\xff\xfe{}"), "VR703"),
    "lock-of-another": (lambda: locked(made_by="me"), "VR703"),
    "lock-twice": (lambda: replaced('"seed": 0', '"seed": 0,\n  "seed": 0'), "VR703"),
    "lock-space": (lambda: replaced('"seed": 0', '"seed":  0'), "VR703"),
    "lock-bit": (lambda: replaced('"seed": 0', '"seed": 1'), "VR703"),
    "seed-text": (lambda: locked(seed="0"), "VR703"),
    "seed-large": (lambda: locked(seed=1 << 70), "VR703"),
    "seed-negative": (lambda: locked(seed=-1), "VR703"),
    "seed-true": (lambda: locked(seed=True), "VR703"),
    "files-outside": (lambda: locked(files={"../tiny.py": "0" * 40}), "VR703"),
    "files-absolute": (lambda: locked(files={"/etc/passwd": "0" * 40}), "VR703"),
    "files-list": (lambda: locked(files=[]), "VR703"),
    "files-odd": (lambda: locked(files={"more.py": 3}), "VR703"),
    "model-list": (lambda: locked(model=["tiny.py:build"]), "VR703"),
    "options-list": (lambda: locked(model_options=[]), "VR703"),
    "places": (lambda: locked(places=[["lora.peft", 1]]), "VR703"),
    "places-odd": (lambda: locked(places=[[1, "lora.peft"]]), "VR703"),
    "lock-include": (lambda: locked(spec="include lora\n"), "VR703"),
    "lock-spec": (lambda: locked(spec="insert lroa() at blocks"), "VR201"),
    "lock-base": (lambda: locked(base_fingerprint="0" * 40), "VR720"),
}


def refused(code: str) -> str:
    """All commands refuse the folder, for one reason, and change nothing."""
    before = snapshot(Path.cwd())
    for line in ("verify out", "lower out --out new"):
        result = invoke(*line.split())
        assert (result.status, result.codes) == (1, [code]), result.err
    assert snapshot(Path.cwd()) == before
    return result.err


@pytest.fixture
def tampered(outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the outputs, without the code that built the model."""
    monkeypatch.chdir(shutil.copytree(outputs, tmp_path / "copy"))
    Path("tiny.py").unlink()
    return Path.cwd()


@pytest.mark.parametrize("name", TAMPERED)
def test_deltas_that_were_changed(name: str, tampered: Path) -> None:
    change, code = TAMPERED[name]
    change()
    assert f"'out/{DELTA}'" in refused("VR715")
    reseal("out")
    assert DELTA in refused(code)


@pytest.mark.parametrize("name", OTHERS)
def test_folders_that_were_changed(name: str, tampered: Path) -> None:
    change, code = OTHERS[name]
    change()
    refused(code)


def test_a_pipe_is_not_waited_for(tampered: Path) -> None:
    os.mkfifo("pipe")
    line = ("apply", "lora.peft", "model=vit_tiny", "depth=1")
    result = invoke(*line, "weights=pipe", "--out", "new")
    assert (result.status, result.codes) == (1, ["VR711"])
    assert "cannot read weights 'pipe': it is no regular file" in result.err
    assert invoke("lower", "out", "--delta", "pipe", "--out", "new").codes == ["VR711"]


def test_nobody_writes_over_a_folder_that_is_not_ours(tampered: Path) -> None:
    cut("lock.json", 100)
    assert invoke("lower", "out", "--out", "out").codes == ["VR701"]


@pytest.mark.usefixtures("without_graphs")
def test_no_text_of_a_lock_file_becomes_code(tampered: Path) -> None:
    """What folders from elsewhere say of names is printed in comments and titles."""
    places = json.loads(Path("out/lock.json").read_text())["places"]
    code = 'a"""\nopen("ran", "w")\n"""\\'
    locked(spec_name=code, model=code, places=[[code, line] for _, line in places])
    assert invoke("lower", "out", "--out", "new").status == 0
    assert invoke("verify", "out").status == 1  # its source is not what would be printed
    assert not Path("ran").exists()
