"""The examples, and the demo of the README, do what they say."""

from __future__ import annotations

import json
import re
import runpy
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

import vitrewrite as vr
from tests.notebooks import code, notebooks
from vitrewrite.sensitivity.profile import Profile

ROOT = Path(__file__).parent.parent
EMITTED = ROOT / "examples" / "emitted"


@pytest.mark.parametrize(("spec", "lines"), [("lora_qv", 145), ("fpet_lora", 239)])
def test_the_committed_source_is_what_is_written_and_runs_on_real_images(
    spec: str, lines: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewritten = vr.apply(vr.parse(spec, model="vit_base"))
    folder = vr.emit(rewritten, tmp_path / "demo")
    _same(folder, EMITTED / f"{spec}-vit_base", lines)
    runpy.run_path(str(ROOT / "examples" / "run_on_image.py"))["main"](str(folder))
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown] == ["china.jpg", "flower.jpg"]


@pytest.mark.slow
def test_the_committed_source_of_a_rewritten_decoder(tmp_path: Path) -> None:
    folder = vr.emit(vr.apply("faseg"), tmp_path / "faseg")
    _same(folder, EMITTED / "faseg-mask2former_r50", 895)
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
    assert source[start : source.index("class VisionTransformer(")].rstrip() in readme
    loop = source.index("        for block in self.blocks[:6]:")
    assert source[loop : source.index("        return self.norm(x)\n", loop)].rstrip() in readme


@pytest.fixture(scope="module")
def digits() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "examples" / "digits.py"))


def test_every_method_of_the_digits_fits_their_model(digits: dict[str, Any]) -> None:
    model = digits["vit"](0)
    named = model.named_parameters()
    profile = Profile({f"sensitivity.{name}": torch.ones(p.shape) for name, p in named})
    for name, spec in digits["METHODS"].items():
        with_profile = {"profile": profile} if "sensitive" in spec else {}
        assert vr.plan(spec, model, **with_profile).steps, name


def test_no_name_in_the_plot_of_the_digits_stands_on_another(digits: dict[str, Any]) -> None:
    names = [*digits["METHODS"]]
    rows = [(name, 4_000.0 + 700 * i, 88.0 + i % 3, 0.5) for i, name in enumerate(names)]
    picture = digits["plot"]([("nothing", 0.0, 60.0, 0.0), *rows, ("all", 200_000.0, 97.0, 1.0)])
    for text in (picture, (ROOT / "examples" / "digits.svg").read_text()):
        found = re.findall(r'<text class="name" x="([\d.]+)" y="([\d.]+)">([^<]*)', text)
        assert {*names} <= {name for *_, name in found}
        for (x, y, name), (other_x, other_y, other) in combinations(found, 2):
            beside = float(x) + digits["width"](name) <= float(other_x)
            beside |= float(other_x) + digits["width"](other) <= float(x)
            assert beside or abs(float(y) - float(other_y)) >= 14, (name, other)


@pytest.mark.slow
def test_the_digits_are_trained(
    digits: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = ["--only", "SSF", "--only", "SLS-LoRA", "--epochs", "1"]
    monkeypatch.setattr("sys.argv", ["digits.py", "--out", str(tmp_path), *chosen])
    digits["main"]()
    table = (tmp_path / "digits.md").read_text()
    assert re.search(r"\| SSF \| 5,888 \| \d+\.\d % \|", table)
    assert ">SLS-LoRA<" in (tmp_path / "digits.svg").read_text()


@pytest.mark.slow
def test_structure_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = ["--only", "UMSA", "--epochs", "1", "--again", "1"]
    monkeypatch.setattr("sys.argv", ["search.py", "--out", str(tmp_path), *chosen])
    runpy.run_path(str(ROOT / "examples" / "search.py"))["main"]()
    rows = (tmp_path / "search.md").read_text().splitlines()
    assert len(rows) == 5
    assert re.fullmatch(r"\| UMSA \| gates \| (79|80|81)\.\d% \| \d+\.\d% \|  \|", rows[-1])


@pytest.mark.slow
def test_stitches_are_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = ["--only", "ESTA", "--epochs", "1"]
    monkeypatch.setattr("sys.argv", ["stitch.py", "--out", str(tmp_path), *chosen])
    runpy.run_path(str(ROOT / "examples" / "stitch.py"))["main"]()
    rows = (tmp_path / "stitch.md").read_text().splitlines()
    share = r"\d+\.\d%"
    assert re.fullmatch(rf"\| ESTA (\| {share} ){{5}}(\| \d of 4 ){{2}}\|", rows[2])
    assert [row.split(" | ")[1] for row in rows[6:]] == ["6", "6", "3", "6"]


@pytest.mark.slow
def test_methods_beside_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = ["--only", "Head2Toe", "--only", "LoRA", "--epochs", "1"]
    monkeypatch.setattr("sys.argv", ["beside.py", "--out", str(tmp_path), *chosen])
    runpy.run_path(str(ROOT / "examples" / "beside.py"))["main"]()
    rows = (tmp_path / "beside.md").read_text().splitlines()
    assert re.fullmatch(r"\| Head2Toe \| 0 \| \d kB \| \d+\.\d % \|", rows[2])
    assert re.fullmatch(r"\| LoRA \| 8,192 \| 2\d\d kB \| \d+\.\d % \|", rows[3])


# -- notebooks ------------------------------------------------------------------------------------


def test_notebooks_are_short_and_hold_no_output() -> None:
    """`make notebooks` runs them; here, that they can be run and what they are."""
    assert len(notebooks()) == 5
    for path in notebooks().values():
        cells = json.loads(path.read_text())["cells"]
        assert cells[0]["source"][0].startswith("# "), path
        assert not any(cell.get("outputs") for cell in cells), path
        assert sum("small" in cell["metadata"] for cell in cells) == 1, path
        assert sum(cell["cell_type"] == "markdown" for cell in cells) >= 3, path
        for text in (*code(path), *code(path, small=True)):
            if not text.startswith(("!", "%%")):
                compile(text, str(path), "exec")
        assert path.name in (ROOT / "README.md").read_text()
