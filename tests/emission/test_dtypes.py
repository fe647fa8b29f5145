"""An emitted model has the dtypes of the model it was printed from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import vitrewrite as vr

from .emitted import INPUT, check, linear, loaded, module


class Rotary(nn.Module):
    """With tables that its constructor computes, one of them too long to be written out."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = linear(), nn.BatchNorm1d(3)
        self.scale = nn.Parameter(torch.ones(8))
        angles = torch.arange(8 * 24) / 7.0
        self.register_buffer("angles", angles.view(24, 8).sin(), persistent=False)
        self.register_buffer("kept", torch.linspace(0, 1, 8))
        self.register_buffer("index", torch.arange(24) % 5, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.fc(x)) * self.scale + self.kept
        return x + self.angles[:3] * self.index[:3, None]


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def default(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """The default dtype when a folder is loaded."""
    yield request.param
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_one_dtype(dtype: torch.dtype, default: torch.dtype, tmp_path: Path) -> None:
    model = Rotary().to(dtype).eval()
    folder = vr.emit(vr.apply("# no clauses\n", model, example=INPUT.to(dtype)), tmp_path / "out")
    text = (folder / "model.py").read_text("utf-8")
    assert "def angles(" in text
    assert "DTYPES" not in text
    torch.set_default_dtype(default)
    twin = loaded(folder)
    assert torch.get_default_dtype() == default
    assert {t.dtype for t in (*twin.parameters(), *twin.buffers())} == {dtype, torch.int64}
    assert torch.equal(twin(INPUT.to(dtype)), model(INPUT.to(dtype)))
    assert not twin.training


def test_several_dtypes(default: torch.dtype, tmp_path: Path) -> None:
    def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x.half()).bfloat16()).float() + self.c(x)  # type: ignore[operator]

    model = module(forward, a=linear().half(), b=linear().bfloat16(), c=Rotary()).eval()
    rotary = model.get_submodule("c")
    rotary.get_buffer("angles").data = rotary.get_buffer("angles").double()
    with torch.no_grad():
        wanted = model(INPUT)
    folder = vr.emit(vr.apply("# no clauses\n", model, example=INPUT), tmp_path / "out")
    torch.set_default_dtype(default)
    twin = loaded(folder)
    for (name, a), (_, b) in zip(
        (*model.named_parameters(), *model.named_buffers()),
        (*twin.named_parameters(), *twin.named_buffers()),
        strict=True,
    ):
        assert a.dtype == b.dtype, name
    with torch.no_grad():
        assert torch.equal(twin(INPUT), wanted)


def test_what_two_names_share_stays_shared(tmp_path: Path) -> None:
    model = module(lambda s, x: s.b(s.a(x.half())).float(), a=linear(), b=linear()).half()
    model.get_submodule("b").weight = model.get_submodule("a").weight
    twin = check(model, tmp_path / "out")
    assert twin.get_submodule("b").weight is twin.get_submodule("a").weight


def test_a_model_made_under_another_default(default: torch.dtype, tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float64)
    model = Rotary().eval()
    torch.set_default_dtype(default)
    x = INPUT.double()
    folder = vr.emit(vr.apply("# no clauses\n", model, example=x), tmp_path / "out")
    assert torch.get_default_dtype() == default
    assert torch.equal(loaded(folder)(x), model(x))


def test_float32_needs_no_word(tmp_path: Path) -> None:
    folder = vr.emit(vr.apply("# no clauses\n", Rotary(), example=INPUT), tmp_path / "out")
    assert "dtype" not in (folder / "model.py").read_text("utf-8")
