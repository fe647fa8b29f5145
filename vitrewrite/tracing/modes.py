"""One program from two traces: eval and train."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from .notes import ARITY, HINT, VALUE, copied
from .operators import is_impure
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
    if evaluation is training:
        return evaluation
    if not isinstance(evaluation, Template) or not isinstance(training, Template):
        return evaluation
    if signature(evaluation.graph) == signature(training.graph):
        return evaluation
    graph = _select(evaluation.graph, training.graph)
    if graph is not None:
        return Template(evaluation.name, graph)
    return Template(evaluation.name, evaluation.graph, training.graph)


def _select(evaluation: fx.Graph, training: fx.Graph) -> fx.Graph | None:
    """The graph of both, if they differ in constants, or in what only training computes."""
    graph = copy_graph(evaluation)
    *nodes, end = graph.nodes
    *others, other_end = training.nodes
    match: dict[fx.Node, fx.Node] = {}
    more: list[fx.Node] = []
    for other in others:
        try:
            _match(graph, nodes[len(match)] if len(match) < len(nodes) else end, other, match)
        except _DifferentError:
            more.append(other)
    if len(match) < len(nodes) or any(is_impure(n) or n.op == "call_module" for n in more):
        return None
    with graph.inserting_before(end):
        for other in more:
            match[other] = graph.node_copy(other, lambda n: match[n])
            copied(other, match[other])
        try:
            end.args = (_outputs(graph, end.args[0], other_end.args[0], match),)
        except _DifferentError:
            return None
    return graph


def _match(graph: fx.Graph, node: fx.Node, other: fx.Node, match: dict[fx.Node, fx.Node]) -> None:
    """Takes two nodes for one, if they are the same but for constants."""
    if node.op != other.op or (node.op != "placeholder" and node.target != other.target):
        raise _DifferentError
    with graph.inserting_before(node):
        args = _join(graph, node.args, other.args, match)
        kwargs = _join(graph, dict(node.kwargs), dict(other.kwargs), match)
    node.args, node.kwargs = args, kwargs
    if HINT.get(other) and node.op != "placeholder":
        HINT.keep(node, HINT.of(other))
    match[other] = node


def _outputs(graph: fx.Graph, a: Any, b: Any, match: dict[fx.Node, fx.Node]) -> Any:
    """The outputs of both, each that of its mode."""
    if isinstance(a, fx.Node) and _is_whole(a, b, match):
        return a
    if isinstance(a, fx.Node) and isinstance(b, fx.Node) and match[b] is not a:
        node = graph.call_function(by_mode, (_training(graph), match[b], a))
        VALUE.put(node, VALUE.get(a))
        return node
    if isinstance(a, (tuple, list)) and type(a) is type(b) and len(a) == len(b):
        return type(a)(_outputs(graph, x, y, match) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return {k: _outputs(graph, a[k], b[k], match) for k in a}
    return _join(graph, a, b, match)


def _is_whole(call: fx.Node, parts: Any, match: dict[fx.Node, fx.Node]) -> bool:
    """Whether one mode returns as it is what the other takes apart: all that a call yields."""
    if not isinstance(parts, tuple) or call.op != "call_module" or not parts:
        return False
    items = [match[p] if isinstance(p, fx.Node) else None for p in parts]
    taken = [(i.args if i is not None and i.target is operator.getitem else ()) for i in items]
    source = next((s for s, node in match.items() if node is call), None)
    return taken == [(call, i) for i in range(len(parts))] and (
        source is not None and ARITY.get(source) == len(parts)
    )


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
    if isinstance(a, slice):
        first, second = ((s.start, s.stop, s.step) for s in (a, b))
        return slice(*_join(graph, first, second, match))
    return a if a == b else _chosen(graph, a, b)


def _chosen(graph: fx.Graph, a: Any, b: Any) -> fx.Node:
    """One of two numbers, by the mode."""
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
