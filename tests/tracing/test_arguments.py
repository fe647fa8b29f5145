"""Keywords, in any order, and arguments that are no tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vitrewrite as vr
from tests.models import spread


class Difference(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a - b


class Swaps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.less = nn.Linear(3, 3), Difference()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.less(b=self.fc(x), a=x)
        return found


class Options(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(
        self, a: torch.Tensor, b: torch.Tensor, scale: int = 1, *, mode: str = "x", **more: Any
    ) -> Any:
        found = self.fc(a) - b if mode == "x" else self.fc(b)
        found = found * scale
        return {"found": found, "a": a} if more.get("everything") else found


A, B = torch.arange(6.0).view(2, 3), torch.ones(2, 3)


def test_keywords_of_a_call_may_stand_in_any_order() -> None:
    model = Swaps().eval()
    assert torch.equal(vr.capture(model, A)(A), model(A))


@pytest.mark.parametrize(
    "example",
    [
        {"b": B, "a": A},
        {"b": B, "a": A, "mode": "y"},
        {"a": A, "scale": 3, "b": B},
        (A, B, 2),
        {"a": A, "b": B, "everything": True, "scale": 2},
    ],
)
def test_a_capture_is_called_as_the_model_is(example: Any) -> None:
    model = Options().eval()
    args, kwargs = ((), example) if isinstance(example, dict) else (example, {})
    captured = vr.capture(model, example)
    want, got = model(*args, **kwargs), captured(*args, **kwargs)
    assert type(got) is type(want)
    for one, other in zip(_parts(want), _parts(got), strict=True):
        assert torch.equal(one, other)
    again = vr.capture(captured, tuple(v for v in (A, B)))
    assert again.printed.text == captured.printed.text  # type: ignore[attr-defined]


def _parts(value: Any) -> list[torch.Tensor]:
    return list(value.values()) if isinstance(value, dict) else [value]


def test_other_constants_than_those_of_the_capture_are_refused() -> None:
    captured = vr.capture(Options().eval(), {"a": A, "b": B, "mode": 'y"{'})
    with pytest.raises(ValueError, match=r"captured for mode='y\"\{', got 'x'"):
        captured(A, B, mode="x")


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ((A, B, 1, 2), "Options cannot be called like the example: too many positional arguments"),
        ({"a": A, "b": B, "mode": object()}, "the example's 'mode' is an object"),
    ],
)
def test_examples_that_cannot_be(example: Any, message: str) -> None:
    with pytest.raises(vr.VitrewriteError, match=message) as caught:
        vr.capture(Options().eval(), example)
    assert caught.value.code == "VR601"


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor, normalise: bool = False) -> torch.Tensor:
        x = self.fc(x)
        x = x / x.norm(dim=-1, keepdim=True) if normalise else x
        found: torch.Tensor = self.head(x)
        return found


def test_a_rewrite_is_verified_and_written_with_its_constants(tmp_path: Path) -> None:
    model = spread(Classifier()).eval()
    example = {"normalise": True, "x": torch.randn(2, 6)}
    spec = 'insert lora(rank=2) at module("fc")\n'
    rewritten = vr.apply(spec, model, example=example)
    vr.verify(rewritten, graphs=False)
    vr.emit(rewritten, tmp_path / "out")
    text = (tmp_path / "out" / "model.py").read_text()
    assert "def forward(self, x, *, normalise=True):" in text
    assert torch.equal(rewritten.module(**example), model(**example))
