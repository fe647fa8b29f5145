"""One program from two traces: eval and train."""

from __future__ import annotations

from typing import Any

from torch import fx

from .template import Template, copy_graph, signature


def by_mode(training: bool, in_training: Any, otherwise: Any) -> Any:
    """Printed as `in_training if self.training else otherwise`."""
    return in_training if training else otherwise


def merge(evaluation: dict[str, Any], training: dict[str, Any]) -> dict[str, Any]:
    """What each module becomes, from what it was in either mode."""
    cache: dict[tuple[int, int], Any] = {}
    merged = {**training, **evaluation}
    for path in evaluation.keys() & training.keys():
        pair = evaluation[path], training[path]
        key = id(pair[0]), id(pair[1])
        if key not in cache:
            cache[key] = _merge(*pair)
        merged[path] = cache[key]
    return merged


def _merge(evaluation: Any, training: Any) -> Any:
    if not isinstance(evaluation, Template) or not isinstance(training, Template):
        return evaluation
    if signature(evaluation.graph) == signature(training.graph):
        return evaluation
    graph = _select(evaluation.graph, training.graph)
    if graph is not None:
        return Template(evaluation.name, graph)
    return Template(evaluation.name, evaluation.graph, training.graph)


def _select(evaluation: fx.Graph, training: fx.Graph) -> fx.Graph | None:
    """The graph of both, if they differ in constants only."""
    graph = copy_graph(evaluation)
    pairs = list(zip(graph.nodes, training.nodes, strict=False))
    if len(graph.nodes) != len(training.nodes):
        return None
    match = {t: e for e, t in pairs}
    for node, other in pairs:
        if node.op != other.op or (node.op != "placeholder" and node.target != other.target):
            return None
        try:
            with graph.inserting_before(node):
                args = _join(graph, node.args, other.args, match)
                kwargs = _join(graph, dict(node.kwargs), dict(other.kwargs), match)
        except _DifferentError:
            return None
        node.args, node.kwargs = args, kwargs
    return graph


class _DifferentError(Exception):
    """The programs differ in more than constants."""


def _join(graph: fx.Graph, a: Any, b: Any, match: dict[fx.Node, fx.Node]) -> Any:
    if isinstance(a, fx.Node) or isinstance(b, fx.Node):
        if not isinstance(b, fx.Node) or match.get(b) is not a:
            raise _DifferentError
        return a
    if type(a) is not type(b):
        raise _DifferentError
    if isinstance(a, (tuple, list)):
        if len(a) != len(b):
            raise _DifferentError
        return type(a)(_join(graph, x, y, match) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        if a.keys() != b.keys():
            raise _DifferentError
        return {k: _join(graph, a[k], b[k], match) for k in a}
    if a == b:
        return a
    if not isinstance(a, (int, float)):
        raise _DifferentError
    return graph.call_function(by_mode, (_training(graph), b, a))


def _training(graph: fx.Graph) -> fx.Node:
    node: fx.Node
    for node in graph.nodes:
        if node.op == "get_attr" and node.target == "training":
            return node
    last = [n for n in graph.nodes if n.op == "placeholder"][-1]
    with graph.inserting_after(last):
        return graph.get_attr("training")
