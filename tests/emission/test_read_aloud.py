"""What the author of a method would write otherwise is not printed: one excerpt for each kind."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

import vitrewrite as vr
from tests.emission.emitted import loaded
from vitrewrite.emission.literals import repeated
from vitrewrite.emission.rates import rooted
from vitrewrite.emission.saying import places

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
SPECS = {
    "adapter": "insert adapter(hidden=2) at every branch\n",
    "dispatch": "insert dispatch(hidden=2) at blocks[*].mlp_branch\n",
    "dynamicvit": "insert prune.dynamicvit(keep=0.7) before blocks[1] + blocks[2]\n",
    "evit": "insert prune.evit(keep=0.5) after blocks[1].attn + blocks[2].attn\n",
    "head2toe": "replace head with head2toe()\n",
    "res_tuning": "insert res_tuning(hidden=2) at blocks[*].attn\n",
    "squeeze": "insert squeeze.tps(keep=0.5) before blocks[1] + blocks[2]\n",
    "repadapter": "insert repadapter(hidden=2) at blocks[*].mlp.fc1\n",
    "ssf": "insert ssf() at blocks[*].attn.qkv\n",
    "tome": "insert merge.tome(r=2) after blocks[*].attn\n",
    "umsa": "replace every attention with umsa()\n",
}
# Of each kind what is printed, and what is not.
EXCERPTS = {
    "one class with and without an optional value": (
        "tome", ["(Block() for _ in range(4))", "def forward(self, x, size=None):"], ["Block2"],
    ),
    "a class is named by what it has": ("evit", ["BlockWithPrune(),"], ["Block2", "Block3"]),
    "a share of a share is a power": ("dynamicvit", ["KeepBest(0.7**2, 1)"], ["0.48999"]),
    "the scale of attention is a root": ("evit", ["q[:, :, :1] * 16**-0.5 @ k"], ["0.25"]),
    "a slice begins without a zero": ("evit", ["q[:, :, :1]"], [", 0:1"]),
    "a docstring says of which blocks it is": (
        "dynamicvit", ['"""blocks[0], 32 wide."""', "Attention of blocks[1:], 2 heads."], ["[*]"],
    ),
    "a long tuple is a row and how often": (
        "head2toe", ["TapsHead((32, 32, 32, 128) * 4 + (32,), (0,) * 17, "], [],
    ),
    "a list is handed on in the order of its items": (
        "head2toe", ["self.head(x.detach(), *features[:16])"], ["features[3]"],
    ),
    "no constructor that does nothing": (
        "umsa", ["class GateRule(nn.Module):"], ["super().__init__()\n\n"],
    ),
    "no method that only its namesake is called for": ("squeeze", [], ["torch.full_like(gone"]),
    "no value that nothing reads": ("tome", [], ["number = "]),
    "an item that nothing reads has no name": ("squeeze", ["x, size, _ = self.squeeze"], []),
    "no branch of an option that is off": ("dispatch", ["if self.training:"], ["noisy", "hard"]),
    "a docstring is of the class as it is": (
        "dispatch", ['"""gate * y, one number for each token."""'], ["`onto`", "`entry`"],
    ),
    "nothing is moved to where it is": ("adapter", ["return y + added"], ["movedim", "dropout"]),
    "an argument has one name": ("repadapter", ["self.down(z)"], ["x = z"]),
    "all channels of a layer are no ranges": (
        "ssf", ["ScaleShift(96)", "return y * self.scale + self.shift"], ["spread", "axis"],
    ),
    "no part that is never there": ("res_tuning", ["ResAdapter(width, hidden)"], ["gate", "None"]),
}  # fmt: skip


@functools.cache
def folder(name: str) -> Path:
    torch.manual_seed(0)
    rewritten = vr.apply(SPECS[name], VisionTransformer(**SIZES, num_classes=5), example=X)
    made = Path(tempfile.mkdtemp()) / name
    vr.emit(rewritten, made)
    with torch.no_grad():
        assert torch.equal(loaded(made)(X), rewritten.module.eval()(X))
    return made


def printed(name: str) -> str:
    return (folder(name) / "model.py").read_text().partition('"""\n')[2]


@pytest.mark.parametrize("kind", sorted(EXCERPTS))
def test_excerpts(kind: str) -> None:
    name, there, gone = EXCERPTS[kind]
    text = printed(name)
    assert not [part for part in there if part not in text], text
    assert not [part for part in gone if part in text], text


@pytest.mark.parametrize("name", ["evit", "tome"])
def test_captured_again_it_is_the_same(name: str, tmp_path: Path) -> None:
    again = vr.apply("# no clauses\n", loaded(folder(name)), example=X)
    vr.emit(again, tmp_path / "again")
    text = (tmp_path / "again" / "model.py").read_text().partition('"""\n')[2]
    assert _bare(text) == _bare(printed(name))


def _bare(text: str) -> list[str]:
    """Its lines but for comments, which say where clauses are, and for what is trained."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return lines[: next(i for i, line in enumerate(lines) if line.startswith("INPUT"))]


def test_what_a_block_has_not_is_not_given_to_the_checks_of_a_pass() -> None:
    spec = "insert squeeze.tps(keep=0.5) after blocks[1].attn + blocks[2].attn\n"
    rewritten = vr.apply(spec, VisionTransformer(**SIZES, num_classes=5), example=X)
    vr.verify(rewritten, graphs=False)


def test_it_is_printed_as_a_formatter_would(tmp_path: Path) -> None:
    for name in sorted(SPECS):
        (tmp_path / f"{name}.py").write_text((folder(name) / "model.py").read_text())
    command = ["ruff", "format", "--isolated", "--line-length", "100", "--diff", str(tmp_path)]
    found = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout


def test_numbers() -> None:
    for value in ((1, 2) * 4, (3,) * 9, (1, 2, 3) * 3 + (1,), tuple(range(9)), (0.5,) * 3, [1] * 9):
        assert eval(repeated(value)) == value
    assert repeated((1, 2) * 4 + (1,)) == "(1, 2) * 4 + (1,)"
    assert repeated((True,) * 7) == "(True, True, True, True, True, True, True)"
    for base in (0.7, 0.9, 0.35):
        for number in (base**2, base**3, base / 3):
            assert eval(rooted(f"({number!r})")) == number
    assert rooted("Keep(0.3429999999999999)") == "Keep(0.7**3)"


def test_places() -> None:
    everywhere = [f"blocks.{i}{rest}" for i in range(12) for rest in ("", ".attn")]
    told = {(3,): "3", (0, 1): ":2", (4, 5, 7): "4:6, 7", (10, 11): "10:", (0, 11): "0, 11"}
    told |= {tuple(range(12)): "*", tuple(range(1, 12, 2)): "1::2", (0, 2, 5, 8, 11): "..."}
    for numbers, text in told.items():
        paths = [f"blocks.{i}.attn" for i in numbers]
        assert places(paths, everywhere) == f"blocks[{text}].attn"
    assert not re.search(r"\d", places([f"blocks.{i}" for i in range(12)], everywhere))
