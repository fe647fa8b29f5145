"""The examples, and the demo of the README, do what they say."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

import vitrewrite as vr

ROOT = Path(__file__).parent.parent
EMITTED = ROOT / "examples" / "emitted" / "lora_qv-vit_base"


def test_the_demo_writes_the_committed_source_and_runs_on_real_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewritten = vr.apply(vr.parse("lora_qv", model="vit_base"))
    folder = vr.emit(rewritten, tmp_path / "demo")
    for name in ("model.py", "plan.md", "graph.svg", "test_model.py"):
        committed = (EMITTED / name).read_text()
        assert (folder / name).read_text() == committed, f"run apply and copy {name}"
    source = (folder / "model.py").read_text().splitlines()
    assert len(source) <= 165
    runpy.run_path(str(ROOT / "examples" / "run_on_image.py"))["main"](str(folder))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["china.jpg", "flower.jpg"]


def test_the_readme_shows_the_shipped_spec_and_the_emitted_source() -> None:
    readme = (ROOT / "README.md").read_text()
    spec = (ROOT / "specs" / "lora_qv.peft").read_text()
    assert "\n".join(spec.splitlines()[2:]) in readme
    source = (EMITTED / "model.py").read_text()
    start = source.index("class Attention")
    assert source[start : source.index("class Mlp")].rstrip() in readme
