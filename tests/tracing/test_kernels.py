"""Shapes that are known without torch's meta kernels are those that torch gives, strides too."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vitrewrite.tracing import kernels


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def alike(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, tuple):
        return len(found) == len(wanted) and all(map(alike, found, wanted))
    kind = lambda t: (t.shape, t.dtype, t.stride(), t.device)  # noqa: E731
    return bool(kind(found) == kind(wanted))


LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (2, 5, 6)),
    "batch norm": (lambda: nn.BatchNorm2d(6).eval(), (2, 6, 3, 4)),
    "group norm": (lambda: nn.GroupNorm(2, 6), (2, 6, 3, 4)),
    "layer norm": (lambda: nn.LayerNorm((3, 4)), (2, 6, 3, 4)),
    "gelu": (nn.GELU, (2, 6)),
    "silu": (nn.SiLU, (2, 6)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    make, shape = LAYERS[name]
    layer = make().to("meta")
    x = meta(*shape)
    assert alike(kernels.of_layer(layer, x), layer(x))
    assert kernels.of_layer(layer, x.transpose(0, 1)) is None  # strides are torch's affair
    assert kernels.of_layer(layer, x.long()) is None


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("more", [{}, {"bidirectional": True, "num_layers": 2}])
@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(cls: Any, more: dict[str, Any], batch_first: bool) -> None:
    layer = cls(6, 4, batch_first=batch_first, **more)
    x = torch.randn(3, 5, 6)
    found = kernels.of_recurrent(layer, torch.float32, x.to("meta"))
    (output, state), (wanted, last) = found, layer(x)
    assert output.shape == wanted.shape
    assert output.stride() == wanted.stride()
    given, known = (s if isinstance(s, tuple) else (s,) for s in (state, last))
    assert [s.shape for s in given] == [s.shape for s in known]
    assert kernels.of_recurrent(layer, torch.bfloat16, x.to("meta")) is None
    assert kernels.of_recurrent(layer, torch.float32, x.to("meta"), last) is None


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_projected_states() -> None:
    layer = nn.LSTM(6, 4, proj_size=3)
    found = kernels.of_recurrent(layer, torch.float32, meta(5, 2, 6))
    wanted = layer(torch.randn(5, 2, 6))
    assert [t.shape for t in (found[0], *found[1])] == [t.shape for t in (wanted[0], *wanted[1])]


FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
    "add": (operator.add, (meta(2, 3), meta(2, 3)), {}),
    "add, rows": (operator.add, (meta(2, 3), meta(1, 3)), {}),
    "times a number": (operator.mul, (meta(2, 3), 2.5), {}),
    "by": (operator.truediv, (meta(2, 3), 2), {}),
    "roll": (torch.roll, (meta(2, 3, 4), (1, 1), (0, 2)), {}),
    "layer norm": (F.layer_norm, (meta(2, 3, 4), (4,), meta(4), meta(4)), {}),
    "interpolate": (F.interpolate, (meta(2, 3, 4, 5), (7, 8)), {"mode": "bilinear"}),
    "grid sample": (F.grid_sample, (meta(2, 3, 4, 5), meta(2, 6, 7, 2)), {"align_corners": False}),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    function, args, kwargs = FUNCTIONS[name]
    assert alike(kernels.of_function(function, args, kwargs), function(*args, **kwargs))


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (operator.add, (meta(2, 1), meta(2, 3))),  # the result is larger
        (operator.add, (meta(2, 3), meta(2, 3, dtype=torch.bfloat16))),
        (operator.mul, (meta(2, 3), True)),
        (operator.add, (meta(3), meta(2, 3))),
        (torch.roll, (meta(2, 3), 1)),
        (F.layer_norm, (meta(2, 3), (4,))),
        (F.interpolate, (meta(2, 3, 4, 5), (7, 8))),  # nearest may keep another memory format
    ],
)
def test_what_is_left_to_torch(function: Any, args: tuple[Any, ...]) -> None:
    assert kernels.of_function(function, args, {}) is None
