"""Along which axes an operation cuts at fixed numbers, in every way that one may write it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import fx

from vitrewrite.anatomy.cuts import _bounds

WAYS: list[tuple[str, tuple[Any, ...], dict[str, Any], set[int]]] = [
    ("split", ([1, 4], 2), {}, {2}),
    ("split", ([1, 4],), {"dim": 2}, {2}),
    ("split", ([1, 4],), {}, {0}),
    ("split", ([1, 4], -1), {}, {3}),
    ("split", (5, 2), {}, set()),
    ("narrow", (2, 1, 4), {}, {2}),
    ("narrow", (), {"dim": 2, "start": 1, "length": 4}, {2}),
    ("narrow", (2,), {"start": 1, "length": 4}, {2}),
    ("getitem", (slice(1, None),), {}, {0}),
    ("getitem", ((slice(None), slice(None), slice(1, None)),), {}, {2}),
    ("getitem", ((..., slice(1, None), slice(None)),), {}, {2}),
    ("getitem", (3,), {}, set()),
    ("softmax", (2,), {}, set()),
]


@pytest.mark.parametrize(("name", "args", "kwargs", "axes"), WAYS, ids=str)
def test_axes(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], axes: set[int]) -> None:
    graph = fx.Graph()
    node = graph.call_method(name, (graph.placeholder("x"), *args), kwargs)
    op: Any = SimpleNamespace(node=node, name=name, inputs=(torch.empty(2, 3, 5, 7),))
    assert _bounds(op) == axes
