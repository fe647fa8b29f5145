"""Graphs as JSON: a list of nodes, each naming what it calls and the values that it reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from ..tracing.notes import ARGUMENT, HINT
from ..tracing.template import Template
from .targets import attributes, function_named, methods, name_of
from .values import ProgramError, decode, encode, identifier, line, path

# What of a node's meta is a name in the source, and what debuggers keep there.
_NAMES = (HINT.name, ARGUMENT.name)
_IGNORED = ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node")


def template_to_json(template: Template) -> dict[str, Any]:
    """A template."""
    training = None if template.training is None else to_json(template.training)
    name = identifier(template.name)
    return {"name": name, "graph": to_json(template.graph), "training": training}


def template_from_json(data: Any) -> Template:
    """The template of `template_to_json`."""
    training = None if data["training"] is None else from_json(data["training"])
    return Template(identifier(data["name"]), from_json(data["graph"]), training)


def to_json(graph: fx.Graph) -> list[dict[str, Any]]:
    """The nodes of a graph, in order.

    Raises:
        DataError: for a node that cannot be written.
    """
    number: dict[fx.Node, int] = {}
    found = []
    for node in graph.nodes:
        found.append(_node_to_json(node, number))
        number[node] = len(number)
    return found


def _node_to_json(node: fx.Node, number: dict[fx.Node, int]) -> dict[str, Any]:
    meta = {k: v for k, v in node.meta.items() if k not in _IGNORED and v is not None}
    data: dict[str, Any] = {"op": node.op, "name": identifier(node.name)}
    if node.op == "call_function":
        data["target"] = name_of(node.target)
    elif node.op != "output":
        data["target"] = str(node.target)
    data["args"] = [encode(a, number) for a in node.args]
    if node.kwargs:
        data["kwargs"] = {k: encode(v, number) for k, v in node.kwargs.items()}
    if meta:
        data["meta"] = {k: encode(v, number) for k, v in sorted(meta.items())}
    _checked(node.op, data.get("target"), node.args, node.kwargs, meta)
    return data


def from_json(data: Any) -> fx.Graph:
    """The graph of `to_json`.

    Raises:
        DataError: for anything that `to_json` does not write.
    """
    graph = fx.Graph()
    nodes: list[fx.Node] = []
    for each in data:
        nodes.append(_node_from_json(each, graph, nodes))
    if not nodes or nodes[-1].op != "output":
        raise ProgramError("a graph has no output")
    return graph


def _node_from_json(data: Any, graph: fx.Graph, nodes: list[fx.Node]) -> fx.Node:
    op, name, target = data["op"], identifier(data["name"]), data.get("target")
    args = tuple(decode(a, nodes) for a in data["args"])
    kwargs = {identifier(k): decode(v, nodes) for k, v in data.get("kwargs", {}).items()}
    meta = {identifier(k): decode(v, nodes) for k, v in data.get("meta", {}).items()}
    _checked(op, target, args, kwargs, meta)
    if op == "call_function":
        target = function_named(target)
    node = graph.create_node(op, "output" if op == "output" else target, args, kwargs, name)
    if node.name != name:
        raise ProgramError(f"{name!r} is there twice, or is no name of a node")
    node.meta = meta
    return node


def _checked(op: str, target: Any, args: Any, kwargs: Any, meta: Any) -> None:
    """Refuses nodes that could do more than compute, or whose text could be more than it says."""
    if op not in _TARGETS:
        raise ProgramError(f"{op!r} is no kind of node")
    _TARGETS[op](target)
    if target == "builtins.getattr" and (len(args) != 2 or args[1] not in attributes()):
        raise ProgramError(f"it reads an attribute {args[1:]!r}")
    for key in kwargs:
        identifier(key)
    for key, value in meta.items():
        if key in _NAMES:
            identifier(value)
        elif isinstance(value, str):
            line(value)


def _method(target: Any) -> None:
    if target not in methods():
        raise ProgramError(f"it calls a method {target!r}")


_TARGETS: dict[str, Callable[[Any], object]] = {
    "placeholder": identifier, "call_module": path, "get_attr": path, "call_method": _method,
    "call_function": function_named, "output": lambda _: None,
}  # fmt: skip
