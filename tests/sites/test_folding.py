"""Which parameter is the bias that a call of a layer adds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from vitrewrite.anatomy.sites import Place
from vitrewrite.editing.editor import Editor
from vitrewrite.sites.folding import bias_of
from vitrewrite.tracing.template import Template
from vitrewrite.tracing.unit import Unit

CALLS: dict[Callable[..., Any], Callable[[Any, Any, Any, Any], tuple[Any, ...]]] = {
    F.linear: lambda x, w, b, s: (x, w, b),
    F.conv1d: lambda x, w, b, s: (x, w, b, 2),
    F.conv2d: lambda x, w, b, s: (x, w, b, 2),
    F.conv3d: lambda x, w, b, s: (x, w, b, 2),
    F.layer_norm: lambda x, w, b, s: (x, (4,), w, b, 1e-5),
    F.group_norm: lambda x, w, b, s: (x, 2, w, b, 1e-5),
    F.batch_norm: lambda x, w, b, s: (x, s, s, w, b),
    F.instance_norm: lambda x, w, b, s: (x, s, s, w, b),
}


def graph_of(function: Callable[..., Any], *, keywords: bool) -> fx.Graph:
    graph = fx.Graph()
    x = graph.placeholder("x")
    w, b, s = (graph.get_attr(n) for n in ("weight", "bias", "running"))
    args, more = CALLS[function](x, w, b, s), {}
    if keywords:
        args, more = tuple(a for a in args if a not in (w, b)), {"weight": w, "bias": b}
        args = args[: 1 if function in (F.linear, F.conv1d, F.conv2d, F.conv3d) else None]
        args = args[:2] if function in (F.layer_norm, F.group_norm) else args
    graph.output(graph.call_function(function, args, more, name="called"))
    return graph


def layer(graph: fx.Graph) -> Unit:
    unit = Unit(Template("Own", graph), "Own")
    for name in ("weight", "bias", "running"):
        unit.register_parameter(name, nn.Parameter(torch.zeros(4)))
    return unit


def calling(path: str, module: nn.Module) -> Editor:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.create_node("call_module", path, (x,), name="called"))
    root = Unit(Template("Root", graph), "Root")
    root._modules[path] = module
    return Editor(root)


@pytest.mark.parametrize("keywords", [False, True])
@pytest.mark.parametrize("function", CALLS, ids=lambda f: f.__name__)
def test_of_a_function_where_it_is_called(function: Any, keywords: bool) -> None:
    editor = Editor(layer(graph_of(function, keywords=keywords)))
    place = Place("", "called")
    assert bias_of(editor, place, "") is None  # that names no parameter
    node = editor.node(place)
    weight, bias = (n for n in node.all_input_nodes if n.name in ("weight", "bias"))
    weight.target, bias.target = "own.weight", "own.bias"
    assert bias_of(editor, place, "own") == "own.bias"
    assert bias_of(editor, place, "other") is None


def test_of_a_layer_with_a_forward_of_its_own() -> None:
    editor = calling("own", layer(graph_of(F.layer_norm, keywords=False)))
    assert bias_of(editor, Place("", "called"), "own") == "own.bias"
    assert bias_of(editor, Place("", "called"), "other") is None


@pytest.mark.parametrize(
    ("module", "found"),
    [
        (nn.Linear(2, 2), "own.bias"),
        (nn.Linear(2, 2, bias=False), "own.bias"),  # it can be given one
        (nn.LayerNorm(2), "own.bias"),
        (nn.LayerNorm(2, elementwise_affine=False), None),
        (nn.LayerNorm(2, bias=False), None),
    ],
    ids=str,
)
def test_of_a_layer_of_torch(module: nn.Module, found: str | None) -> None:
    assert bias_of(calling("own", module), Place("", "called"), "own") == found
