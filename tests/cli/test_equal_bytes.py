"""Equal input gives equal bytes, also in another process with other hashes of strings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cli.invoke import invoke
from tests.tuning.conftest import TINY

SPEC = """
model tiny.py:build
insert lora(rank=2, convention=spt) at optional sensitive(budget=6K, samples=8)
insert sparse() at optional sensitive(budget=6K, samples=8)
insert merge.bdm() after blocks[0].attn
train head
tune { batch = 32, epochs = 1, lr = 1e-3 }
"""
PROGRAM = """
import sys
from vitrewrite.__main__ import main
for line in sys.stdin.read().splitlines():
    assert main(line.split()) == 0, line
"""
LINES = """
profile spec.peft --trust data=digits:0-1 num_classes=2 --out profile --batch 4
plan spec.peft --trust --profile profile num_classes=2 --json
apply spec.peft --trust --profile profile num_classes=2 --out applied
lower applied --out lowered
tune spec.peft --trust data=digits:0-1 num_classes=2 --profile profile device=cpu --out tuned
"""
TIMES = {"seconds", "images_per_second", "peak_memory_mb"}


def without(value: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Without the hashes of what holds times."""
    return {k: v for k, v in value.items() if k not in keys}


def in_this_process(folder: Path) -> str:
    """Runs all lines and yields what they print."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        results = [invoke(*line.split()) for line in LINES.strip().splitlines()]
    finally:
        os.chdir(before)
    assert [result.status for result in results] == [0] * len(results), results
    return "".join(result.out for result in results)


def in_another(folder: Path) -> str:
    """The same where hashes of strings are others."""
    seed = 1 + (os.environ.get("PYTHONHASHSEED") == "1")
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    done = subprocess.run(
        [sys.executable, "-B", "-c", PROGRAM],
        input=LINES.strip(),
        cwd=folder,
        text=True,
        capture_output=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(folder: Path, lines: Callable[[Path], str]) -> dict[str, Any]:
    """Everything that is written, by name, and what is printed, but for times."""
    folder.mkdir()
    (folder / "tiny.py").write_text(TINY)
    (folder / "spec.peft").write_text(SPEC)
    printed = [line for line in lines(folder).splitlines() if not line.startswith("trained   ")]
    found: dict[str, Any] = {"": printed}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or "__pycache__" in name:
            continue
        if name.endswith("metrics.jsonl"):
            steps = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{k: v for k, v in s.items() if k not in TIMES} for s in steps]
        elif name.endswith("state.json"):
            state = json.loads(path.read_text())
            state["run"].pop("seconds", None)
            found[name] = without(state, "digest", "metrics")
        elif name == "tuned/lock.json":
            lock = without(json.loads(path.read_text()), "digest")
            found[name] = {**lock, "files": without(lock["files"], "metrics.jsonl")}
        else:
            found[name] = path.read_bytes()
    return found


def test_equal_runs_write_equal_bytes(tmp_path: Path) -> None:
    first = run(tmp_path / "first", in_this_process)
    second = run(tmp_path / "second", in_another)
    assert first.keys() == second.keys()
    assert {"profile", "applied/graph.svg", "lowered/originals.safetensors"} <= first.keys()
    assert "tuned/lock.json" in first
    assert [name for name in first if first[name] != second[name]] == []
