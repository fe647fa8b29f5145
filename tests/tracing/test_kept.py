"""Buffers that a module's own `_apply` keeps in float32: so they stay in what we make of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vitrewrite as vr
from tests.emission.emitted import loaded

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


class Frequencies(nn.Module):
    """As timm's rotary positions: what a cast made less exact is made again."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bands", self.made(), persistent=False)
        self.register_buffer("shift", torch.full((8,), 0.1))

    def made(self) -> torch.Tensor:
        return 100.0 ** torch.linspace(-1, 1, 8)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        super()._apply(*args, **kwargs)
        if self.bands.dtype in (torch.bfloat16, torch.float16):
            self.register_buffer("bands", self.made().to(self.bands.device), persistent=False)
        return self


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rope, self.fc = Frequencies(), nn.Linear(8, 8)
        self.scale = torch.linspace(0.3, 0.7, 8)  # a plain attribute, which no cast reaches

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        angles = torch.arange(x.shape[1])[:, None] * self.rope.bands
        y = self.fc(x * angles.cos().to(x.dtype) + self.rope.shift)
        return y * self.scale


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_casts_of_what_is_made(dtype: torch.dtype, tmp_path: Path) -> None:
    model = Model().eval()
    rewritten = vr.apply("# no clauses\n", model, example=X)
    vr.emit(rewritten, tmp_path / "o")
    own = copy.deepcopy(model).to(dtype)
    wanted = own(X.to(dtype))
    for each in (vr.capture(model, X), rewritten.module, loaded(tmp_path / "o")):
        cast = copy.deepcopy(each).eval().to(dtype)
        assert torch.equal(cast(X.to(dtype)), wanted)
        kept = cast.get_submodule("rope").bands
        assert kept.dtype == own.rope.bands.dtype


def test_what_was_cast_already_is_captured_as_it_is() -> None:
    model = Model().eval().bfloat16()
    captured = vr.capture(model, X.bfloat16())
    assert captured.get_submodule("rope").bands.dtype == torch.float32
    assert torch.equal(captured(X.bfloat16()), model(X.bfloat16()))


def test_other_buffers_are_cast_and_all_are_moved() -> None:
    captured = vr.capture(Model().eval(), X)
    rope = copy.deepcopy(captured).bfloat16().get_submodule("rope")
    assert (rope.bands.dtype, rope.shift.dtype) == (torch.float32, torch.bfloat16)
    assert copy.deepcopy(captured).to("meta").get_submodule("rope").bands.is_meta
