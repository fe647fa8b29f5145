"""A class in a file as a pass: where it is found, and whose code runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vitrewrite as vr
from tests.authored import HEAD, branch
from tests.lowering.models import vit
from vitrewrite.folder.reading import Trust, load_folder
from vitrewrite.language.format import format_text

CLAUSE = "insert ./own/gate.py:Gate() at blocks[*].mlp.fc2"


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """A spec beside a folder with a pass, and the pass leaves a mark when it runs."""
    (tmp_path / "own").mkdir()
    mark = f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
    text = HEAD + mark + branch("gate", "Gate", "y + self.scale * y")
    (tmp_path / "own" / "gate.py").write_text(text)
    path = tmp_path / "mine.peft"
    path.write_text(f"model {tmp_path / 'models.py'}:vit\n{CLAUSE}\n")
    (tmp_path / "models.py").write_text("from tests.lowering.models import vit\n")
    return path


def test_it_is_relative_to_the_spec(spec: Path) -> None:
    rewritten = vr.apply(spec, vit())
    assert (spec.parent / "ran").exists()
    assert "blocks.0.mlp.fc2.gate.scale" in rewritten.delta()
    assert str(rewritten.spec.clauses[0]) == CLAUSE
    assert CLAUSE in str(vr.plan(spec, vit()))


def test_options_are_overridden_by_the_name_of_the_file(spec: Path) -> None:
    file = spec.parent / "own" / "gate.py"
    field = "    claims: ClassVar[tuple[str, ...]] = ()\n"
    file.write_text(file.read_text().replace(field, f"{field}    n: int = option(3)\n"))
    assert vr.parse(spec, **{"gate.n": 4}).clauses[0].use.values == {"n": 4}  # type: ignore[union-attr]


def test_reading_a_spec_runs_nothing(spec: Path) -> None:
    vr.parse(spec)
    assert not (spec.parent / "ran").exists()


def test_a_folder_does_not_run_it_unless_trusted(spec: Path) -> None:
    out = spec.parent / "out"
    rewritten = vr.apply(spec)
    vr.emit(rewritten, out)
    (spec.parent / "ran").unlink()
    for trust in (Trust(), Trust(model=f"{spec.parent / 'models.py'}:vit")):
        with pytest.raises(vr.VitrewriteError, match=r"VR718 .*gate.py:Gate"):
            load_folder(out, trust)
    assert not (spec.parent / "ran").exists()
    again = load_folder(out, Trust(code=True))
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.module.eval()(x), rewritten.module.eval()(x))


@pytest.mark.parametrize(
    ("clause", "message"),
    [
        ("insert ./none.py:Gate() at blocks[*].mlp.fc2", "VR201 there is no file"),
        ("insert ./own/gate.py:Gat() at blocks[*].mlp.fc2", "VR240 .*no class 'Gat'.*Gate does"),
        ("insert ./lora.py:Gate() at blocks[*].mlp.fc2", "VR241 two passes are named 'lora'"),
        ("prepend ./own/gate.py:Gate() to blocks[*].attn", "VR208 gate cannot be used"),
    ],
)
def test_what_is_wrong_is_told(spec: Path, clause: str, message: str) -> None:
    (spec.parent / "lora.py").write_text(HEAD)
    spec.write_text(f"{clause}\n")
    with pytest.raises(vr.VitrewriteError, match=message):
        vr.parse(spec)


def test_it_is_formatted_as_a_name() -> None:
    text = "insert   ./own/gate.py:Gate( n = 3 )   at blocks[*].mlp\n"
    wanted = "insert ./own/gate.py:Gate(n=3) at blocks[*].mlp\n"
    assert format_text(text) == wanted
    assert format_text(wanted) == wanted
    model = "model ../models.py:vit(depth=2)\n"
    assert format_text(model) == model
