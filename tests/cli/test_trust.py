"""A Python file that a spec names runs only if the command that reads the spec says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from .invoke import TINY, invoke

CODE = 'open("ran", "w").close()\n'
MODEL = "model tiny.py:build(depth=1)\n"
GATE = '''
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from vitrewrite.authoring import BranchSite, Pass


class Scale(nn.Module):
    """Nothing at first."""

    inserted_by = "gate"
    changes = (0,)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scaled."""
        return x * (1 + self.weight)


@dataclass(frozen=True)
class Gate(Pass):
    """Scales a branch."""

    verbs: ClassVar[tuple[str, ...]] = ("insert at",)
    attaches: ClassVar[tuple[str, ...]] = ("branch",)
    source: ClassVar[str] = "nobody"
    claims: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ()

    def rewrite(self, branch: BranchSite) -> None:
        """x = scale(x)."""
        branch.wrap(Scale())
'''
SPECS = {
    "model.peft": f"{MODEL}train head\n",
    "pass.peft": "model vit_tiny_patch16_224(depth=1, img_size=32)\n"
    "insert ./gate.py:Gate() at blocks[*].mlp_branch\n",
    "both.peft": 'include "pass.peft"\n',
    "stitch.peft": "stitch tiny.py:build(depth=1), vit_tiny with snnet()\n",
    "teacher.peft": 'model vit_tiny\ntrain head\ntune { teacher = "tiny.py:build" }\n',
}


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("tiny.py").write_text(CODE + TINY)
    Path("gate.py").write_text(CODE + GATE)
    for name, text in SPECS.items():
        Path(name).write_text(text)
    return tmp_path


def ran() -> bool:
    """Whether code of the files ran since this was asked last."""
    found = Path("ran").exists()
    Path("ran").unlink(missing_ok=True)
    return found


@pytest.mark.parametrize("name", ["model.peft", "pass.peft", "both.peft", "stitch.peft"])
def test_no_command_runs_what_a_spec_names(name: str) -> None:
    for line in (
        f"check {name}",
        f"plan {name}",
        f"plan {name} num_classes=3 seed=1",
        f"apply {name} --out out",
        f"tune {name} data=digits --out out",
        f"profile {name} data=digits --out p.safetensors",
        f"bench {name}",
        f"verify {name}",
        f"show architecture {name} --out a.svg",
    ):
        result = invoke(*line.split(), trust=False)
        assert (result.status, result.codes) == (1, ["VR585"]), line
        assert "--trust runs it" in result.err
        assert not ran(), line
    assert not Path("out").exists()


def test_the_place_and_what_to_do_is_told() -> None:
    assert invoke("check", "model.peft", trust=False).err == (
        "model.peft:1:7: VR585 the spec names the code 'tiny.py:build', which runs only if the "
        "command says so\n"
        "    model tiny.py:build(depth=1)\n"
        "          ^^^^^^^^^^^^^\n"
        "  help: --trust runs it, and model=tiny.py:build names it\n"
    )
    error = invoke("check", "both.peft", "--json", trust=False).json["specs"][0]["errors"][0]
    assert (error["code"], error["file"], error["line"]) == ("VR585", "pass.peft", 2)
    assert error["help"] == "--trust runs it"
    assert invoke("sites", "stitch.peft", trust=False).codes == ["VR585"]
    assert not ran()


def test_what_runs_no_code_is_not_refused() -> None:
    assert invoke("diff", "model.peft", "pass.peft", trust=False).status == 0
    assert invoke("fmt", "model.peft", trust=False).status == 0
    assert not ran()


def test_it_runs_where_the_command_says_so() -> None:
    for line in (
        ("check", "model.peft", "--trust"),
        ("plan", "model.peft", "model=tiny.py:build"),
        ("plan", SPECS["model.peft"]),
    ):
        result = invoke(*line, trust=False)
        assert (result.status, result.codes) == (0, []), result.err
        assert ran(), line
    assert invoke("check", "pass.peft", "model=tiny.py:build", trust=False).codes == ["VR585"]
    result = invoke("plan", "pass.peft", "--trust", trust=False)
    assert (result.status, result.codes) == (0, []), result.err
    assert ran()


def test_a_teacher_is_asked_in_training_alone() -> None:
    assert invoke("check", "teacher.peft", trust=False).codes == []
    result = invoke("tune", "teacher.peft", "data=digits", "--out", "out", trust=False)
    assert result.codes == ["VR585"]
    assert "tune.teacher=tiny.py:build names it" in result.err
    assert not ran()
