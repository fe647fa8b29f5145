"""Small functions that compute the tables of a model, printed from its constructor's graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from ..tracing.about import about
from ..tracing.leaves import is_inserted
from ..tracing.template import Template
from ..tracing.undisturbed import default_dtype
from ..tracing.unit import run_graph
from .access import child_of
from .forward import body_lines
from .literals import Symbol
from .names import NameScope
from .parameters import Parameters
from .skeleton import Position, numbered, replace_literals, skeleton
from .tables import is_short


@dataclass
class Function:
    """A program shared by all tables that differ in numbers only."""

    name: str
    graph: fx.Graph
    paths: list[str] = field(default_factory=list)
    literals: list[dict[Position, int | float]] = field(default_factory=list)
    parameters: Parameters = field(default_factory=lambda: Parameters(0))
    text: str = ""


class Functions:
    """The functions for the tables of `root`."""

    def __init__(self, root: nn.Module, scope: NameScope) -> None:
        self.scope = scope
        self.of: dict[str, Function] = {}  # path of a buffer -> its function
        self.all: list[Function] = []
        keys: dict[Any, Function] = {}
        for path, graph in about(root).programs.items():
            buffer = _buffer(root, path)
            if buffer is None or is_short(buffer) or not _computes(graph, buffer):
                continue
            name = path.rpartition(".")[2]
            shape, literals = skeleton(Template(name, graph))
            function = keys.get(shape)
            if function is None:
                function = keys[shape] = Function(scope.take(name, "table"), graph)
                self.all.append(function)
            function.paths.append(path)
            function.literals.append(literals)
            self.of[path] = function
        for function in self.all:
            _print(function, root, scope)

    def call(self, paths: Sequence[str], parameters: Parameters) -> str | None:
        """A call that makes the table at each path, or None if they need different functions."""
        found = {id(self.of[p]) if p in self.of else 0 for p in paths}
        if len(found) != 1 or 0 in found:
            return None
        function = self.of[paths[0]]
        index = [function.paths.index(p) for p in paths]
        arguments = []
        for name, vector in function.parameters.vectors.items():
            values = tuple(vector[i] for i in index)
            arguments.append(parameters.express(values, name))
        return f"{function.name}({', '.join(arguments)})"


def _buffer(root: nn.Module, path: str) -> torch.Tensor | None:
    owner, _, name = path.rpartition(".")
    try:
        module = child_of(root, owner)
        return None if is_inserted(module) else module._buffers.get(name)
    except (KeyError, AssertionError):
        return None


def _computes(graph: fx.Graph, buffer: torch.Tensor) -> bool:
    """Whether the program really yields this table (its model may be another one's twin)."""
    if buffer.device.type == "meta":
        return True
    with default_dtype(torch.float32):  # as in the file
        value = run_graph(graph, nn.Module(), ())
    if value.dtype == torch.float32 and buffer.is_floating_point():
        value = value.to(buffer.dtype)  # as `build` does
    alike = value.shape == buffer.shape and value.dtype == buffer.dtype
    return bool(alike and torch.equal(value, buffer.cpu()))


def _print(function: Function, root: nn.Module, scope: NameScope) -> None:
    function.parameters = Parameters(len(function.paths), scope.taken)
    new: dict[Position, Any] = {}
    for position in function.literals[0]:
        vector = tuple(found[position] for found in function.literals)
        text = function.parameters.express(vector, "size")
        if any(v != vector[0] for v in vector):
            new[position] = Symbol(text)
    graph = numbered(function.graph)
    replace_literals(graph, 0, new)
    head = f"def {function.name}({', '.join(function.parameters.vectors)}):"
    body = body_lines(graph, (root,), [])
    function.text = "\n".join((head, *(f"    {line}" for line in body)))
