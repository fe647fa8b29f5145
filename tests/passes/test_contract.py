"""What a newcomer who writes a pass gets wrong, and what he is told: code, place, site, remedy."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

import vitrewrite as vr
from tests.authored import HEAD, install
from tests.lowering.models import vit
from vitrewrite.rewrite.rewritten import Rewritten

GOOD = """
def halved(x):
    return x / 2

class GateModule(nn.Module):
    inserted_by = "NAME"
    changes = (1,)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.gate = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y + self.gate * y


@dataclass(frozen=True)
class Gate(Pass):
    verbs: ClassVar[tuple[str, ...]] = ("insert at",)
    attaches: ClassVar[tuple[str, ...]] = ("linear",)
    claims: ClassVar[tuple[str, ...]] = ("same_output_at_init",)
    reads: ClassVar[tuple[str, ...]] = ()

    def rewrite(self, linear: Any) -> None:
        linear.parallel(GateModule(linear.out_features))
"""
RESET = "    def reset_parameters(self, generator: torch.Generator) -> None:\n        "
FORWARD = "    def forward(self, x"
NUMBERS = itertools.count()
Check = Callable[[Rewritten], object]

MISTAKES = {
    "an argument that is not kept": (
        "        self.width = width\n", "", "VR421", "does not keep its argument 'width'", "width",
    ),
    "an argument that is kept otherwise": (
        "self.width = width\n", "self.width = 2 * width\n", "VR421", "is another", "class GateM",
    ),
    "any arguments": ("width: int)", "width: int, **more: Any)", "VR421", "any arg", "class GateM"),
    "a helper function": (
        "self.gate * y", "halved(self.gate) * y", "VR422", "uses 'halved'", "return y",
    ),
    "an import beyond torch": ("self.gate * y", "math.pi * np.ones(3)", "VR422", "'np'", "np.ones"),
    "no inserted_by": ('    inserted_by = "NAME"\n', "", "VR423", "does not say", "class GateM"),
    "another inserted_by": ('"NAME"', '"other"', "VR423", "does not say which", "class GateM"),
    "no changes": ("    changes = (1,)\n", "", "VR424", "has no changes", "class GateM"),
    "a scalar parameter": ("zeros(width)", "zeros(())", "VR425", "'gate'", "self.gate = "),
    "another shape": ("y + self.gate * y", "(y + self.gate * y)[:, 1:]", "VR426", "17x16", ""),
    "another dtype": ("y + self.gate * y", "y.double()", "VR426", "float64 instead", ""),
    "writing into the input": ("y + self.gate * y", "y.add_(1)", "VR427", "argument 'y'", ""),
    "an exception in rewrite": (
        "GateModule(linear.out_features)", "GateModule(linear.outfeatures)", "VR420",
        "fails in rewrite() at 'blocks[0].mlp.fc2': AttributeError", "linear.parallel",
    ),
    "an exception in forward": (
        "y + self.gate * y", "y + self.gates * y", "VR420", "GateModule fails in forward()",
        "self.gates",
    ),
    "an unknown role": ('("linear",)', '("liner",)', "VR240", "attaches has 'liner'", "attaches"),
    "an unknown claim": ('"same_output_at_init"', '"same_output"', "VR240", "claims has", "claims"),
    "an unknown fact": (' = ()\n', ' = ("grids",)\n', "VR240", "reads has 'grids'", "reads"),
    "no rewrite": ("def rewrite", "def rewrites", "VR240", "has no rewrite()", ""),
    "random numbers outside of the generator": (
        FORWARD, f"{RESET}nn.init.normal_(self.gate)\n\n{FORWARD}", "VR428",
        "draws from the global generator in initialise() at 'blocks[0].mlp.fc2'", "",
    ),
    "a false lowers_exactly": (
        '"same_output_at_init",)', '"lowers_exactly",)', "VR240", "has no lower()", "",
    ),
}  # fmt: skip


def written(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> str:
    """Installs a pass under a name of its own."""
    name = f"gate{next(NUMBERS)}"
    install(monkeypatch, folder, **{name: text.replace("NAME", name)})
    return name


def spec(name: str) -> str:
    return f"insert {name}() at blocks[*].mlp.fc2\n"


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told(mistake: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old, new, code, message, shown = MISTAKES[mistake]
    assert GOOD.count(old) >= 1
    text = GOOD.replace(old, new, 1)
    name = written(monkeypatch, tmp_path, text)
    with pytest.raises(vr.VitrewriteError) as caught:
        vr.apply(spec(name), vit())
    told = caught.value.render()
    assert caught.value.code == code
    assert message in told
    assert name in told
    path = tmp_path / f"authored_{name}.py"
    assert str(path) in told
    if shown:
        lines = (HEAD + text.replace("NAME", name)).splitlines()
        numbers = [i for i, line in enumerate(lines, 1) if shown in line]
        assert any(f"{path}:{i}" in told for i in numbers)
    if code != "VR240":
        assert "blocks[0].mlp.fc2" in told


def test_the_pass_without_mistakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = written(monkeypatch, tmp_path, GOOD)
    delta = vr.apply(spec(name), vit()).delta()
    assert delta[f"blocks.0.mlp.fc2.{name}.gate"].tolist() == [0.0] * 16


LATER: dict[str, tuple[str, str, str, Check]] = {
    "the delta of one site for several": (
        "", "delta() at 'blocks[0].attn.q, blocks[0].attn.v' has tensors of 1", "VR429",
        lambda rewritten: rewritten.delta(),
    ),
    "an exception in lower": (
        "    def lower(self, site: Any, module: Any) -> bool:\n        return site.folded\n",
        "fails in lower() at 'blocks[2].attn.q, blocks[2].attn.v': AttributeError", "VR420",
        vr.lower,
    ),
    "an exception in delta": (
        "    def delta(self, module: Any) -> list[dict[str, torch.Tensor]]:\n        1 / 0\n",
        "fails in delta() at 'blocks[0].attn.q, blocks[0].attn.v': ZeroDivisionError", "VR420",
        lambda rewritten: rewritten.delta(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", LATER)
def test_a_mistake_is_told_later(
    mistake: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    more, message, code, act = LATER[mistake]
    name = written(monkeypatch, tmp_path, f"{GOOD}\n{more}")
    with pytest.raises(vr.VitrewriteError) as caught:  # where plan lowers, it is told at once
        act(vr.apply(f"insert {name}() at blocks[*].attn.{{q, v}}\n", vit()))
    assert caught.value.code == code
    assert message in caught.value.render()
    assert f"authored_{name}.py" in caught.value.render()
