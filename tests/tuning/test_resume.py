"""Nothing is lost: kills, full disks, other runs, broken checkpoints."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.invoke import invoke, snapshot
from vitrewrite import disk
from vitrewrite.tuning import checkpoints

pytestmark = pytest.mark.xdist_group("resume")  # one uninterrupted run for all of them

RUN = ("tune", "lora.peft", "data=digits:0-3", "num_classes=4", "tune.checkpoint_every=4")
KILLED = """
import os, signal, sys
from vitrewrite.folder import writing as files
from vitrewrite.tuning import checkpoints, loop
where, after = sys.argv[1], int(sys.argv[2])
owner, name = {
    "step": (loop.TrainingLoop, "_update"), "saving": (checkpoints, "_flush"),
    "writing": (files, "save_delta"),
}[where]
original, calls = getattr(owner, name), []
def counted(*args, **kwargs):
    calls.append(1)
    if len(calls) == after:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)
setattr(owner, name, counted)
from vitrewrite.__main__ import main
sys.exit(main(sys.argv[3:]))
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that nothing interrupted; to be left as it is."""
    from .conftest import LORA, TINY

    base = tmp_path_factory.mktemp("whole")
    (base / "tiny.py").write_text(TINY)
    (base / "lora.peft").write_text(LORA)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(base)
        assert invoke(*RUN, "--out", "out").status == 0
    return base / "out"


def same_tensors(first: Path, second: Path) -> bool:
    a, b = load_file(first), load_file(second)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def without_times(folder: Path) -> list[dict[str, Any]]:
    """The lines of the metrics, without what is measured and not computed."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    times = {"seconds", "images_per_second", "peak_memory_mb"}
    return [{k: v for k, v in line.items() if k not in times} for line in lines]


@pytest.mark.parametrize(
    ("where", "after", "last"),
    # Of 36 steps; a checkpoint flushes four paths and one is written every fourth step.
    [
        ("step", 19, 16),
        pytest.param("saving", 4 * 3 + 2, 8, marks=pytest.mark.slow),
        pytest.param("saving", 1, None, marks=pytest.mark.slow),
        ("writing", 1, 36),
    ],
)
def test_a_killed_run_ends_bit_identical(
    where: str, after: int, last: int | None, whole: Path, here: Path
) -> None:
    command = [sys.executable, "-c", KILLED, where, str(after), *RUN, "--trust", "--out", "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    assert not (here / "out" / "lock.json").exists()
    found = sorted(p.name for p in (here / "out" / "checkpoints").glob("0*"))
    assert found[-1:] == ([f"00-{last:08}"] if last is not None else [])
    refused = invoke(*RUN, "--out", "out")
    assert refused.codes == ["VR730"]
    assert "--resume" in refused.err
    result = invoke(*RUN, "--out", "out", "--resume")
    assert result.status == 0, result.err
    for name in ("delta.safetensors", "weights.safetensors"):
        assert same_tensors(here / "out" / name, whole / name)
    step = whole / "checkpoints" / "00-00000036"
    again = here / "out" / "checkpoints" / "00-00000036"
    assert same_tensors(step / "tensors.safetensors", again / "tensors.safetensors")
    assert without_times(here / "out") == without_times(whole)
    assert {p.name for p in (here / "out").iterdir()} == {p.name for p in whole.iterdir()}
    assert not list((here / "out" / "checkpoints").glob(".*"))


def test_a_finished_run_is_left_alone_and_can_be_finished_again(whole: Path, here: Path) -> None:
    shutil.copytree(whole, here / "out")
    before = snapshot(here / "out")
    refused = invoke(*RUN, "--out", "out")
    assert refused.codes == ["VR730"]
    assert "a finished run" in refused.err
    for command in (["apply", "lora.peft"], ["lower", "out"]):
        assert invoke(*command, "--out", "out").codes == ["VR701"]
    assert snapshot(here / "out") == before
    assert invoke(*RUN, "--out", "out", "--resume").status == 0
    assert same_tensors(here / "out" / "delta.safetensors", whole / "delta.safetensors")


def test_a_run_that_goes_on_is_told_from_one_that_was_interrupted(whole: Path, here: Path) -> None:
    shutil.copytree(whole, here / "out")
    (here / "out" / "lock.json").unlink()
    (here / "link").symlink_to("out")
    assert invoke(*RUN, "--out", "out").codes == ["VR730"]
    before = snapshot(here)
    with disk.workplace(here / "out" / ".run.vitrewrite", here / "out"):  # as who trains there
        for out in ("out", "link"):
            assert invoke(*RUN, "--out", out).codes == ["VR735"]
            assert invoke(*RUN, "--out", out, "--resume").codes == ["VR735"]
    assert snapshot(here) == before
    assert invoke(*RUN, "--out", "link", "--resume").status == 0
    assert same_tensors(here / "out" / "delta.safetensors", whole / "delta.safetensors")


def test_a_run_that_was_killed_before_it_began_is_none(here: Path) -> None:
    program = """
import os, signal
from pathlib import Path
from vitrewrite import disk
Path("out").mkdir()
with disk.replacing_file(Path("out/tune.json")) as growing:
    growing.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    assert [p.name for p in (here / "out").iterdir()] == [".tune.json.vitrewrite"]
    assert invoke(*RUN, "--out", "out", "--resume").codes == ["VR731"]
    result = invoke(*RUN, "tune.epochs=1", "--out", "out")
    assert result.status == 0, result.err
    assert not list((here / "out").glob(".*"))


def test_a_folder_of_something_else_is_left_alone(here: Path) -> None:
    (here / "out").mkdir()
    (here / "out" / "data").write_text("precious")
    before = snapshot(here)
    assert invoke(*RUN, "--out", "out").codes == ["VR730"]
    assert invoke(*RUN, "--out", "tiny.py").codes == ["VR730"]
    assert invoke(*RUN, "--out", "out", "--resume").codes == ["VR731"]
    assert invoke(*RUN, "--out", "nowhere", "--resume").codes == ["VR731"]
    assert snapshot(here) == before


@pytest.mark.parametrize(
    ("given", "note"),
    [
        (("lora.rank=3",), "the spec had 'insert lora(rank=2) at blocks[*].attn.{q, v}', has"),
        (("tune.lr=1e-4",), "tune.lr was '0.003', is '0.0001'"),
        (("seed=1",), "seed was '0', is '1'"),
        (("data=digits:4-7",), "data was 'digits:0-3', is 'digits:4-7'"),
        (("model=tiny.py:build(depth=3)",), "base weights was"),
    ],
)
def test_a_run_goes_on_only_as_what_it_was(
    given: tuple[str, ...], note: str, whole: Path, here: Path
) -> None:
    shutil.copytree(whole, here / "out")
    before = snapshot(here / "out")
    keys = {each.partition("=")[0] for each in given}
    kept = [each for each in RUN if each.partition("=")[0] not in keys]
    result = invoke(*kept, *given, "--out", "out", "--resume")
    assert result.codes == ["VR732"]
    assert note in result.err
    assert snapshot(here / "out") == before


def test_what_does_not_change_the_result_may_change(whole: Path, here: Path) -> None:
    shutil.copytree(whole, here / "out")
    changed = [each for each in RUN if "checkpoint_every" not in each]
    result = invoke(*changed, "tune.workers=1", "tune.keep=5", "--out", "out", "--resume")
    assert result.status == 0, result.err


@pytest.mark.parametrize(("when", "kind"), [(4, "tensors"), (1, "state")])
def test_a_full_disk_leaves_the_checkpoints_that_are_there(
    when: int, kind: str, whole: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = {"tensors": "write_tensors", "state": "_flush"}[kind]
    original, calls = getattr(checkpoints, name), []

    def full(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) >= (when if kind == "tensors" else 4 * when - 1):
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*args, **kwargs)

    monkeypatch.setattr(checkpoints, name, full)
    result = invoke(*RUN, "--out", "out")
    assert result.codes == ["VR702"]
    assert "No space left on device" in result.err
    monkeypatch.undo()
    monkeypatch.chdir(here)
    found = sorted(p.name for p in Path("out/checkpoints").glob("0*"))
    assert found == [f"00-{4 * k:08}" for k in range(when - 1)][-2:]
    assert invoke(*RUN, "--out", "out", "--resume").status == 0
    assert same_tensors(here / "out" / "delta.safetensors", whole / "delta.safetensors")


@pytest.mark.parametrize("what", ["cut", "state", "format", "missing", "tensors"])
def test_a_checkpoint_that_was_broken_later_is_named(what: str, whole: Path, here: Path) -> None:
    shutil.copytree(whole, here / "out")
    last = sorted((here / "out" / "checkpoints").iterdir())[-1]
    tensors = last / "tensors.safetensors"
    if what == "cut":
        tensors.write_bytes(tensors.read_bytes()[:-8])
    if what == "state":
        (last / "state.json").write_text("{")
    if what == "format":
        (last / "state.json").write_text('{"format": "another"}')
    if what == "missing":
        tensors.unlink()
    if what == "tensors":
        shutil.copy(here / "out" / "delta.safetensors", tensors)
    result = invoke(*RUN, "--out", "out", "--resume")
    assert result.codes == ["VR733"]
    assert last.name in result.err
    shutil.rmtree(last)
    assert invoke(*RUN, "--out", "out", "--resume").status == 0
    assert same_tensors(here / "out" / "delta.safetensors", whole / "delta.safetensors")


def test_an_interruption_says_how_to_go_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitrewrite.tuning.loop import TrainingLoop

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingLoop, "_evaluate", interrupt)
    result = invoke(*RUN, "--out", "out")
    assert result.status == 130
    assert result.err == "interrupted; go on from the last checkpoint with --resume\n"
