"""All or nothing: what `apply` replaces, and what a failed or killed run leaves."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitrewrite.disk import folders
from vitrewrite.folder import writing as files

from .invoke import FILES, LORA, invoke, snapshot


def test_our_folder_is_replaced_and_others_are_refused(inside: Path) -> None:
    (inside / "out" / "notes.txt").write_text("a file of somebody else, which stays")
    assert invoke("lower", "out", "--out", "out").status == 0
    assert (inside / "out" / "originals.safetensors").is_file()
    assert invoke("apply", "lora.peft", "--out", "out", "--no-weights").status == 0
    expected = FILES - {"weights.safetensors"} | {"notes.txt"}
    assert {p.name for p in (inside / "out").iterdir()} == expected
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
        assert "lora.peft:10:1: VR501 the claim 'macs <= 1000' does not hold" in result.err
    assert snapshot(inside) == before


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_weights_that_somebody_put_there_are_not_overwritten(inside: Path) -> None:
    assert invoke("apply", "lora.peft", "--out", "out", "--no-weights").status == 0
    (inside / "out" / "weights.safetensors").write_text("of weeks of training")
    before = snapshot(inside)
    result = invoke("apply", "lora.peft", "--out", "out")
    assert (result.status, result.codes) == (1, ["VR734"])
    assert "weights.safetensors" in result.err
    assert snapshot(inside) == before


def test_an_odd_name_of_a_folder(inside: Path) -> None:
    for out in ("it's \n\"new\\", "\udcff"):
        result = invoke("apply", "lora.peft", "--out", out, "--no-weights")
        assert result.status == 0, result.err
        assert (inside / out / "model.py").is_file()
        assert result.out.splitlines()[-1].startswith("written   '")
        assert result.out.encode()
    for out in ("nul\0", "half \ud800"):
        result = invoke("apply", "lora.peft", "--out", out)
        assert (result.status, result.codes) == (1, ["VR737"])


@pytest.mark.parametrize("name", ["_write_all", "save_delta", "_swap"])
def test_a_write_that_fails_leaves_the_old_output(
    inside: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before = snapshot(inside)
    owner = folders if name == "_swap" else files
    monkeypatch.setattr(owner, name, failing(OSError(errno.ENOSPC, "No space left on device")))
    for out in ("out", "new/folder"):
        result = invoke("apply", "lora.peft", "--out", out)
        assert (result.status, result.codes) == (1, ["VR702"])
        assert "No space left" in result.err
    monkeypatch.setattr(owner, name, failing(KeyboardInterrupt()))
    result = invoke("apply", "lora.peft", "--out", "out")
    assert (result.status, result.err) == (130, "interrupted; nothing was written\n")
    assert snapshot(inside) == before


def test_a_rename_that_fails_brings_the_old_output_back(
    inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(inside)
    rename = Path.rename

    def only_aside(path: Path, target: Path) -> Path:
        if target.name == "out" and path.name != "old":
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(folders, "exchanged", lambda *_: False)
    monkeypatch.setattr(Path, "rename", only_aside)
    assert invoke("apply", "lora.peft", "--out", "out").codes == ["VR702"]
    assert snapshot(inside) == before


def test_a_disk_that_is_full_in_the_middle_of_the_weights(
    inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(inside)
    full = failing(OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr("vitrewrite.folder.writing.write_tensors", full)
    assert invoke("apply", "lora.peft", "--out", "out").codes == ["VR702"]
    assert snapshot(inside) == before


KILLED = """
import os, signal
from pathlib import Path
from vitrewrite import disk
with disk.replacing(Path("out")) as folder:
    (folder / "lock.json").write_text("half of it")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.usefixtures("without_graphs")
def test_a_killed_run_leaves_the_old_output(inside: Path) -> None:
    before = snapshot(inside / "out")
    done = subprocess.run([sys.executable, "-c", KILLED], check=False)
    assert done.returncode == -9
    assert snapshot(inside / "out") == before
    assert (inside / ".out.vitrewrite").is_dir()
    assert invoke("verify", "out").status == 0
    assert invoke("apply", "lora.peft", "--out", "out").status == 0
    assert not list(inside.glob(".*"))


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
