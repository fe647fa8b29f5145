"""No size or dtype becomes a constant without a check: what is right is written out here."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import vitrewrite as vr

EXAMPLE = torch.zeros(2, 6, 4)
ONES = torch.ones(3, 6, 4)


class Model(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


def captured(function: Callable[..., Any]) -> nn.Module:
    return vr.capture(Model(function).eval(), EXAMPLE)


def rms_norm(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    dtype = x.dtype
    y = x.to(torch.float32)
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)).to(dtype)


def test_a_constant_dtype_stays_and_a_reading_follows() -> None:
    x = torch.tensor([[[3.0, 4.0, 0.0, 0.0]]], dtype=torch.bfloat16)
    y = captured(rms_norm)(x)
    assert y.dtype == torch.bfloat16
    # 3 / 2.5 and 4 / 2.5, rounded once: in bfloat16 all through, the first is 1.203125.
    assert y.float().flatten().tolist() == [1.203125, 1.6015625, 0.0, 0.0]
    text = "x.to(torch.float32)"
    assert text in captured(rms_norm).printed.text  # type: ignore[union-attr, operator]


def test_the_right_one_of_two_tensors_is_followed() -> None:
    def two(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        single = x.float()
        return x.to(single.dtype) / 3 if single.dtype == torch.float32 else x

    def other(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        single = x.float()
        return (x / 3).to(x.dtype) if single.dtype == torch.float32 else x

    x = torch.ones(1, 6, 4, dtype=torch.float64)
    assert captured(two)(x).dtype == torch.float32
    assert captured(other)(x).dtype == torch.float64


def test_a_program_for_one_dtype_checks_it() -> None:
    model = captured(lambda m, x: x * 2 if x.dtype == torch.float32 else x * 3)
    assert model(ONES).unique().item() == 2
    with pytest.raises(ValueError, match=r"captured for torch.float32, got torch.bfloat16"):
        model(ONES.bfloat16())


def test_a_program_for_two_dtypes_checks_the_third() -> None:
    model = captured(lambda m, x: x * 3 if x.dtype == torch.float16 else x * 2)
    assert model(ONES.bfloat16()).unique().item() == 2
    message = r"captured for torch.float32 or torch.bfloat16, got torch.float16"
    with pytest.raises(ValueError, match=message):
        model(ONES.half())


def test_a_check_of_dtypes_is_captured_again() -> None:
    model = captured(lambda m, x: x * 2 if x.dtype == torch.float32 else x * 3)
    again = vr.capture(model, EXAMPLE)
    assert again(ONES).unique().item() == 2
    with pytest.raises(ValueError, match=r"captured for torch.float32, got torch.float16"):
        again(ONES.half())


def by_length(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x / len(x)


def test_len_is_tracked() -> None:
    assert captured(by_length)(ONES).unique().item() == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: x + sum(range(x.shape[0])),
        lambda m, x: x * int(str(x.shape[0])),
        lambda m, x: torch.stack([row * 2 for row in x]),
        lambda m, x: x * json.loads(json.dumps({"n": x.shape[0]}))["n"],
        lambda m, x: x * (int(str(x.shape[0])) % 2),
        lambda m, x: x * len(str(x.shape[0])) if m.training else x,
    ],
)
def test_a_batch_size_that_escapes_is_refused_with_the_line(function: Callable[..., Any]) -> None:
    with pytest.raises(vr.VitrewriteError, match=r"VR605 .*[( ]test_constants\.py:\d+"):
        captured(function)


@pytest.mark.parametrize(
    "function", [lambda m, x: x + sum(range(x.shape[1])), lambda m, x: x * float(f"{x.shape[1]}")]
)
def test_a_length_that_escapes_is_checked(function: Callable[..., Any]) -> None:
    model = captured(function)
    assert torch.equal(model(ONES), function(model, ONES))
    with pytest.raises(ValueError, match="captured for 6, got 7"):
        model(torch.ones(3, 7, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_in_another_dtype_is_captured_in_it(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(4, 4), Model(rms_norm)).to(dtype).eval()
    found = vr.capture(model, EXAMPLE.to(dtype))
    for other in (dtype, torch.float32):
        x = torch.randn(3, 6, 4).to(other)
        assert torch.equal(found.to(other)(x), model.to(other)(x))


def test_a_subclass_stays_one() -> None:
    def asked(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        inner = issubclass(bool, int) and issubclass(type(x.shape[0]), int)
        return x * 2 if inner and not issubclass(int, bool) else x * 3

    assert captured(asked)(ONES).unique().item() == 2


class Child(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


class Parent(nn.Module):
    """Reads a dtype behind a child."""

    def __init__(self) -> None:
        super().__init__()
        self.child = Child()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.child(x)
        return x * 3 if x.dtype == torch.float16 else x * 2


def test_a_dtype_that_is_read_behind_a_child_is_looked_at_in_the_third_too() -> None:
    model = vr.capture(Parent(), EXAMPLE)
    assert model.bfloat16()(ONES.bfloat16()).unique().item() == 2
    with pytest.raises(ValueError, match=r"got torch.float16"):
        model.half()(ONES.half())


def test_the_mode_is_read_once() -> None:
    def moded(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = x * (2 if m.training else 3)
        return x.sin() + (4 if m.training else 5)

    model: Any = captured(moded)
    (graph,) = model.graphs.values()
    assert [n.target for n in graph.nodes if n.op == "get_attr"] == ["training"]
    assert model(ONES).unique().item() == pytest.approx(5 + float(torch.tensor(3.0).sin()))
