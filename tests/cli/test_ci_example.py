"""The example of a workflow: its steps pass where all is well, and fail where something is not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.connection import Client, Listener
from pathlib import Path
from threading import Thread

import pytest
import yaml

from .invoke import invoke

WORKFLOW = Path(__file__).parents[2] / "examples" / "ci" / "vitrewrite.yml"
MODEL = "vit_tiny_patch16_224(depth=1, embed_dim=48, num_heads=3, img_size=32, num_classes=5)"
SPEC = f"""model {MODEL}

insert lora(rank=2) at blocks[*].attn.{{q, v}}
train head

require trainable == 384 excluding head
"""
# As the command, which the tests carry out in their own process: torch is imported there already.
COMMAND = f"""#!{sys.executable}
import sys
from multiprocessing.connection import Client
with Client("bin/socket", "AF_UNIX") as there:
    there.send(sys.argv[1:])
    status, out, err = there.recv()
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(status)
"""


@pytest.fixture(scope="module")
def steps() -> dict[str, str]:
    """What the workflow runs, by the name of the step."""
    jobs = yaml.safe_load(WORKFLOW.read_text())["jobs"]
    found = [step for job in jobs.values() for step in job["steps"] if "run" in step]
    assert all("shell" not in step for step in found)
    return {step.get("name", step["run"]): step["run"] for step in found}


@pytest.fixture
def project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_graphs: None
) -> Iterator[Path]:
    """A repository as the workflow expects it, with the command that its steps run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "lora_qv.peft").write_text(SPEC)
    assert invoke("apply", "specs/lora_qv.peft", "--out", "models/lora_qv").status == 0
    command = tmp_path / "bin" / "vitrewrite"
    command.parent.mkdir()
    command.write_text(COMMAND)
    command.chmod(0o755)
    with Listener("bin/socket", "AF_UNIX") as listener:
        thread = Thread(target=serve, args=(listener,))
        thread.start()
        yield tmp_path
        with Client("bin/socket", "AF_UNIX") as there:
            there.send(None)
        thread.join()


def serve(listener: Listener) -> None:
    """Carries out command lines until there is none."""
    while True:
        with listener.accept() as there:
            line = there.recv()
            if line is None:
                return
            done = invoke(*line)
            there.send((done.status, done.out, done.err))


def run(script: str, project: Path) -> tuple[int, str]:
    """The exit status of a step as GitHub runs it, and what it printed."""
    path = project / "step.sh"
    path.write_text(script)
    paths = os.pathsep.join([str(project / "bin"), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-e", str(path)],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": paths},
    )
    return done.returncode, done.stdout + done.stderr


def named(steps: dict[str, str], pattern: str) -> str:
    (found,) = (text for text in steps.values() if re.search(pattern, text))
    return found


def test_all_steps_pass(steps: dict[str, str], project: Path) -> None:
    printed = ""
    for name, script in steps.items():
        if not script.startswith("pip install"):
            status, text = run(script, project)
            assert status == 0, name + text
            printed += text
    assert "ok     specs/lora_qv.peft" in printed
    assert "insert lora(rank=2) at blocks[*].attn.{q, v}" in printed  # it was planned
    assert "claim  ok  trainable == 384 excluding head" in printed
    assert json.loads((project / "verify.json").read_text())["ok"] is True


def test_a_folder_that_was_changed_fails(steps: dict[str, str], project: Path) -> None:
    source = project / "models" / "lora_qv" / "model.py"
    source.write_text(source.read_text() + "# a change\n")
    status, text = run(named(steps, "vitrewrite verify"), project)
    assert status == 1, text
    assert "model.py" in text
    written = (project / "verify.json").read_text()
    assert not written or json.loads(written)["ok"] is False


def test_specs_that_are_wrong_fail(steps: dict[str, str], project: Path) -> None:
    spec = project / "specs" / "a.peft"
    form, plan = named(steps, "vitrewrite fmt"), named(steps, "vitrewrite plan")
    spec.write_text("train   head\n")
    assert run(form, project)[0] == 1
    spec.write_text(SPEC.replace("384", "385"))  # the first of two specs
    status, text = run(plan, project)
    assert (status, "VR501" in text) == (1, True)
