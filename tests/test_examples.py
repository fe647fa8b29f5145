"""The examples, and the demo of the README, do what they say."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

import vitrewrite as vr

ROOT = Path(__file__).parent.parent
EMITTED = ROOT / "examples" / "emitted"


@pytest.mark.parametrize(("spec", "lines"), [("lora_qv", 200), ("fpet_lora", 440)])
def test_the_committed_source_is_what_is_written_and_runs_on_real_images(
    spec: str, lines: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewritten = vr.apply(vr.parse(spec, model="vit_base"))
    folder = vr.emit(rewritten, tmp_path / "demo")
    _same(folder, EMITTED / f"{spec}-vit_base", lines)
    runpy.run_path(str(ROOT / "examples" / "run_on_image.py"))["main"](str(folder))
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown] == ["china.jpg", "flower.jpg"]


def test_the_committed_source_of_a_rewritten_decoder(tmp_path: Path) -> None:
    folder = vr.emit(vr.apply("faseg"), tmp_path / "faseg")
    _same(folder, EMITTED / "faseg-mask2former_r50", 1230)
    decoder = (
        (folder / "model.py").read_text().partition("class Mask2FormerMaskedAttentionDecoder(")[2]
    )
    assert "for i in range(0, 9, 3):" in decoder


def _same(folder: Path, committed: Path, lines: int) -> None:
    for name in ("model.py", "plan.md", "graph.svg", "test_model.py"):
        expected = _exact((committed / name).read_text())
        assert _exact((folder / name).read_text()) == expected, f"apply and copy {name}"
    assert len((folder / "model.py").read_text().splitlines()) <= lines


def _exact(text: str) -> str:
    """Without rounding errors, which differ from machine to machine."""
    return re.sub(r"\d\.\d+e-\d+", "", text)


def test_the_readme_shows_the_shipped_spec_and_the_emitted_source() -> None:
    readme = (ROOT / "README.md").read_text()
    spec = (ROOT / "specs" / "fpet_lora.peft").read_text()
    assert "\n".join(spec.splitlines()[2:]) in readme
    source = (EMITTED / "fpet_lora-vit_base" / "model.py").read_text()
    start = source.index("class BlockWithMerge")
    assert source[start : source.index("class AttentionWithSize")].rstrip() in readme
    loop = source.index("        for block in self.blocks[:6]:")
    assert source[loop : source.index("        return self.norm(x)\n", loop)].rstrip() in readme
