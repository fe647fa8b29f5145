"""Inserted modules that hold others: torch's layers, containers, and classes of the pass's file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import vitrewrite as vr
from tests.authored import install
from tests.emission.emitted import loaded
from tests.lowering.models import fill, vit
from vitrewrite.emission.realise import realise
from vitrewrite.rewrite.rewritten import Rewritten

TEXT = """
class Mix(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.linear = nn.Linear(width, width{more})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


class {cls}Module(nn.Module):
    inserted_by = "{name}"
    changes = (1,)

    def __init__(self, width: int, hidden: int = 3) -> None:
        super().__init__()
        self.width, self.hidden = width, hidden
        self.net = nn.Sequential(
            Mix(width), nn.Linear(width, hidden), nn.GELU(), nn.Dropout(0.5),
            nn.Linear(hidden, width),
        )
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y + self.gate * self.net(y)


@dataclass(frozen=True)
class {cls}(Pass):
    verbs: ClassVar[tuple[str, ...]] = ("insert at",)
    attaches: ClassVar[tuple[str, ...]] = ("linear",)
    claims: ClassVar[tuple[str, ...]] = ("same_output_at_init",)

    def rewrite(self, linear: Any) -> None:
        linear.parallel({cls}Module(linear.out_features))
"""
SPEC = "insert kids() at blocks[*].mlp.fc2\ninsert others() at blocks[1].mlp.fc2\n"


@pytest.fixture
def rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rewritten:
    install(
        monkeypatch,
        tmp_path,
        kids=TEXT.format(name="kids", cls="Kids", more=""),
        others=TEXT.format(name="others", cls="Others", more=", bias=False"),
    )
    return vr.apply(SPEC, vit())


def test_all_that_is_claimed_holds(rewritten: Rewritten) -> None:
    assert [str(c) for c in vr.verify(rewritten, graphs=False) if c.holds is False] == []


def test_defaults_of_a_pass(rewritten: Rewritten) -> None:
    """Values as the constructor draws them, from the site's generator; a delta of all of them."""
    delta = rewritten.delta()
    stem = "blocks.1.mlp.fc2.others"
    assert f"{stem}.net.0.linear.weight" in delta
    assert f"{stem}.net.0.linear.bias" not in delta
    assert delta[f"{stem}.gate"].tolist() == [0.0]
    drawn = delta[f"{stem}.net.1.weight"]
    assert 0.1 < float(drawn.abs().max()) <= 16**-0.5
    torch.manual_seed(7)
    again = vr.apply(SPEC, vit()).delta()
    assert all(torch.equal(value, again[name]) for name, value in delta.items())
    first, second = (delta[f"blocks.{i}.mlp.fc2.kids.net.1.weight"] for i in (0, 1))
    assert not torch.equal(first, second)


def test_the_printed_file_computes_the_same(rewritten: Rewritten, tmp_path: Path) -> None:
    fill(rewritten)
    vr.emit(rewritten, tmp_path / "out")
    printed = loaded(tmp_path / "out")
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    module = rewritten.module.eval()
    assert torch.equal(printed.eval()(x), module(x))
    base = vr.apply("# none\n", vit()).module.eval()
    assert not torch.equal(module(x), base(x))
    captured = vr.capture(printed)
    assert torch.equal(captured(x), module(x))
    text = re.sub(r" +# <text>.*\n", "", rewritten.source.text)
    assert realise(captured).text == text
    assert "class Mix2(" in text
