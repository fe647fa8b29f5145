"""A bit that turns over in a file is noticed by every command that reads it."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.invoke import LORA, TINY, invoke, snapshot
from tests.folders import flip
from vitrewrite.cli.listing import differences
from vitrewrite.errors import VitrewriteError
from vitrewrite.folder.lock import Folder
from vitrewrite.folder.reading import load_folder, rewritten_folder, unlowered_folder
from vitrewrite.language.settings import Settings
from vitrewrite.tuning.checkpoints import Checkpoints
from vitrewrite.tuning.engine import Engine
from vitrewrite.tuning.folder import RunFolder
from vitrewrite.verification.folder import verify_folder

FLIPS = 20
RUN = (
    *("tune", "lora.peft", "data=digits:0-3", "num_classes=4", "in_chans=1", "tune.steps=2"),
    *("tune.warmup_epochs=0", "tune.keep=1", "--out", "tuned"),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`out`, `tuned` and `low` as the commands wrote them; to be left as it is."""
    pytest.importorskip("accelerate")
    base, before = tmp_path_factory.mktemp("flips"), Path.cwd()
    (base / "tiny.py").write_text(TINY.replace('"depth": 2', '"depth": 1'))
    (base / "lora.peft").write_text(LORA.replace("1024", "512"))
    os.chdir(base)
    try:
        for line in (
            ("apply", "lora.peft", "--out", "out"), RUN, ("lower", "out", "--out", "low"),
        ):  # fmt: skip
            result = invoke(*line)
            assert result.status == 0, result.err
    finally:
        os.chdir(before)
    return base


@pytest.fixture
def inside(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them as the current folder."""
    monkeypatch.chdir(shutil.copytree(folders, tmp_path / "copy"))
    return Path.cwd()


def files_of(folder: str) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file())


def flips(folder: str, name: str) -> list[int]:
    """Which bits of a file are turned over."""
    size = 8 * Path(folder, name).stat().st_size
    return random.Random(f"{folder}/{name}").sample(range(size), FLIPS)


def notices(folder: str, name: str, read: Callable[[Path], object]) -> None:
    """Each flip in a file is an error that names it."""
    path = Path(folder, name)
    for bit in flips(folder, name):
        flip(path, bit)
        with pytest.raises(VitrewriteError) as caught:
            read(Path(folder))
        assert Path(name).name in caught.value.render(), bit
        flip(path, bit)


@pytest.mark.parametrize("folder", ["out", "tuned", "low"])
def test_verify_notices_every_bit_of_every_file(folder: str, inside: Path) -> None:
    names = [n for n in files_of(folder) if not n.startswith("checkpoints/")]
    assert set(Folder.open(Path(folder)).lock["files"]) | {"lock.json"} == set(names)
    for name in names:
        notices(folder, name, verify_folder)


@pytest.mark.parametrize("folder", ["out", "tuned"])
def test_lower_notices_every_bit_of_what_it_reads(folder: str, inside: Path) -> None:
    for name in ("lock.json", "program.json", "weights.safetensors", "delta.safetensors"):
        notices(folder, name, rewritten_folder)


def test_undo_notices_every_bit_of_what_it_reads(inside: Path) -> None:
    for name in ("lock.json", "program.json", "weights.safetensors", "originals.safetensors"):
        notices("low", name, unlowered_folder)
        notices("low", name, load_folder)


def test_resume_notices_every_bit_of_what_it_reads(inside: Path) -> None:
    (state, tensors) = (n for n in files_of("tuned") if n.startswith("checkpoints/"))
    engine = Engine(Settings(), "cpu")

    def checkpoint(path: Path) -> None:
        folder = RunFolder(path)
        folder.check(resume=True)
        Checkpoints(folder.checkpoints, folder.metrics, 1, engine).read()

    try:
        for name in (state, tensors, "tune.json", "metrics.jsonl", "lock.json"):
            notices("tuned", name, checkpoint)
        Path("tuned/lock.json").rename("kept")  # as if it had been interrupted
        for name in (state, tensors, "tune.json", "metrics.jsonl"):
            notices("tuned", name, checkpoint)
    finally:
        engine.close()


def test_resume_leaves_a_damaged_folder_as_it_is(inside: Path) -> None:
    name = next(n for n in files_of("tuned") if n.endswith("tensors.safetensors"))
    flip(Path("tuned", name), 8 * 2000)
    before = snapshot(inside)
    result = invoke(*RUN, "--resume")
    assert (result.status, result.codes) == (1, ["VR733"])
    assert name in result.err
    assert snapshot(inside) == before
    flip(Path("tuned", name), 8 * 2000)
    assert invoke(*RUN, "--resume").status == 0
    assert files_of("tuned") == before_names(before)


def before_names(before: dict[str, str]) -> list[str]:
    return sorted(n.removeprefix("tuned/") for n, h in before.items() if h and n[:6] == "tuned/")


def test_commands_name_the_file(inside: Path) -> None:
    for line, name in {
        "verify out": "graph.svg",
        "verify low": "model.py",
        "verify tuned": "metrics.jsonl",
        "lower out --out new": "weights.safetensors",
        "lower tuned --out new": "delta.safetensors",
        "lower low --undo --out new": "originals.safetensors",
        "diff out low": "report.json",
        "show sensitivity out": "report.json",
        "show segmentation out --out new.png": "program.json",
    }.items():
        folder = line.split()[-1] if line.startswith("show sens") else line.split()[1]
        folder = "out" if line.startswith(("diff", "show")) else folder
        flip(Path(folder, name), 777)
        result = invoke(*line.split())
        assert (result.status, result.codes) == (1, ["VR715"]), line
        assert f"'{folder}/{name}' is not what was written" in result.err
        flip(Path(folder, name), 777)


def test_diff_notices_every_bit_of_what_it_reads(inside: Path) -> None:
    for name in ("report.json", "lock.json"):
        notices("out", name, lambda folder: differences(str(folder), "low"))
