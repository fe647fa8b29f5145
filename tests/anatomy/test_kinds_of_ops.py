"""What an operation is, told of layers and of functions alike."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from vitrewrite.anatomy.kinds import is_conv, is_depthwise


def functional(weight: torch.Tensor, *more: Any, **options: Any) -> Any:
    graph = fx.Graph()
    args = (graph.placeholder("x"), graph.get_attr("weight"))
    node = graph.call_function(F.conv2d, (*args, *more), options)
    return SimpleNamespace(
        module=None, name="conv2d", node=node, operand=lambda index, name: weight
    )


def of_layer(layer: nn.Module) -> Any:
    return SimpleNamespace(module=layer, name="layer", node=None)


@pytest.mark.parametrize(
    ("op", "apart"),
    [
        (of_layer(nn.Conv2d(4, 4, 3, groups=4)), True),
        (of_layer(nn.Conv2d(4, 8, 3, groups=4)), True),
        (of_layer(nn.Conv2d(4, 4, 3, groups=2)), False),
        (of_layer(nn.Conv2d(4, 4, 3)), False),
        (of_layer(nn.Conv2d(1, 4, 3)), False),
        (functional(torch.zeros(4, 1, 3, 3), groups=4), True),
        (functional(torch.zeros(4, 1, 3, 3), None, 1, 1, 1, 4), True),
        (functional(torch.zeros(4, 2, 3, 3), groups=2), False),
        (functional(torch.zeros(4, 4, 3, 3)), False),
        (functional(torch.zeros(4, 1, 3, 3)), False),  # of grey images
    ],
)
def test_a_convolution_that_keeps_channels_apart(op: Any, apart: bool) -> None:
    assert is_conv(op)
    assert is_depthwise(op) == apart
