"""Two gloo processes end where one process ends: DDP, and torch's own FSDP2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import vitrewrite as vr
from tests.cli.invoke import FILES, invoke
from vitrewrite.tuning import tune

from .conftest import LORA, TINY
from .two_processes import SETTINGS, SPEC

pytestmark = pytest.mark.xdist_group("distributed")

ROOT = Path(__file__).parents[2]
TIED = """

def tied(**options):
    model = build(depth=3, **options)
    model.blocks[1].mlp.fc1.weight = model.blocks[0].mlp.fc1.weight
    return model
"""


def launch(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Starts two processes and waits for them; fails with what they said."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the scenarios ran on two processes, and one ran on one."""
    base = tmp_path_factory.mktemp("two")
    (base / "tiny.py").write_text(TINY + TIED)
    (base / "lora.peft").write_text(LORA)
    launch(*TORCHRUN, str(ROOT / "tests" / "tuning" / "two_processes.py"), folder=base)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(base)
        alone = SETTINGS.changed({"accumulate": 1})
        tune(vr.apply(SPEC.format(dropout=0)), "digits:0-3", alone, out="one")
    return base


def deltas(*folders: Path) -> list[dict[str, torch.Tensor]]:
    return [load_file(each / "delta.safetensors") for each in folders]


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_two_processes_end_where_one_ends(name: str, folder: Path) -> None:
    one, two = deltas(folder / "one", folder / name)
    assert one.keys() == two.keys()
    start = vr.apply(SPEC.format(dropout=0).replace("tiny.py", f"{folder}/tiny.py")).delta()
    moved, apart = (
        {key: float((one[key] - each[key]).abs().max()) for key in one} for each in (start, two)
    )
    assert max(apart.values()) <= 1e-6
    assert min(moved.values()) > 0
    assert max(moved.values()) > 1e-3
    assert {p.name for p in (folder / name).iterdir()} >= FILES
    assert all((folder / "dropout" / name).is_file() for name in FILES)


@pytest.mark.slow
def test_a_sharded_run_goes_on_from_its_shards(folder: Path) -> None:
    whole, again = deltas(folder / "whole", folder / "again")
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    (last,) = (folder / "again" / "checkpoints").glob("*-00000008")
    names = sorted(p.name for p in last.iterdir())
    assert [n.split("-")[0] for n in names] == ["shard", "shard", "state.json"]
    parts = [load_file(last / n) for n in names[:2]]
    rows = [part["/model/head.weight"].shape[0] for part in parts]
    assert rows == [2, 2]


def test_the_model_that_was_sharded_is_whole_again(folder: Path) -> None:
    from vitrewrite.folder.reading import load_folder

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        rewritten = load_folder(folder / "fsdp")
    weights: dict[str, Any] = load_file(folder / "fsdp" / "weights.safetensors")
    for name, tensor in rewritten.module.state_dict().items():
        assert torch.equal(weights[name], tensor), name


@pytest.mark.slow
def test_the_command_under_torchrun(folder: Path) -> None:
    given = (
        "lora.peft",
        "data=digits:0-3",
        "num_classes=4",
        "lora.dropout=0",
        "tune.epochs=1",
        "--trust",
    )
    done = launch(*TORCHRUN, "-m", "vitrewrite", "tune", *given, "--out", "command", folder=folder)
    assert done.stdout.count("accuracy ") == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert invoke("tune", *given, "--out", "alone").status == 0
    one, two = (
        [
            line.split('"loss": ')[1].split(",")[0]
            for line in (folder / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("alone", "command")
    )
    assert [float(a) for a in two] == pytest.approx([float(a) for a in one], abs=1e-4)


@pytest.mark.slow
def test_the_command_under_accelerate_launch(folder: Path) -> None:
    done = launch(
        *("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines"),
        *("1", "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "vitrewrite", "tune"),
        *("lora.peft", "data=digits:0-3", "num_classes=4", "tune.epochs=1", "tune.shard=true"),
        *("--trust", "--out", "launched"),
        folder=folder,
    )
    assert done.stdout.count("accuracy ") == 1
    assert list((folder / "launched" / "checkpoints").rglob("shard-00002*"))
