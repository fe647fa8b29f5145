"""A program cut in two: what comes before the nodes of a named part, and that part."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from .guards import is_guard
from .modes import by_mode
from .nodes import is_size
from .notes import ARITY, ENTRY, HINT, RESULT, VALUE, copied
from .operators import is_impure, is_inplace
from .sizes import by_size

Part = tuple[str, Any, int]
"""Where a value stands in what the first half returns: the container ("" for none), the key, and
how many there are."""


def result_nodes(value: Any, nodes: Mapping[int, fx.Node]) -> dict[fx.Node, Part] | None:
    """The nodes of a result, by the ids of values; None unless it is tensors, at most in a list."""
    items: list[tuple[str, Any, Any]] = [("", None, value)]
    if type(value) in (list, tuple):
        items = [(type(value).__name__, i, item) for i, item in enumerate(value)]
    elif type(value) is dict:
        items = [("dict", key, item) for key, item in value.items() if isinstance(key, str)]
    found: dict[fx.Node, Part] = {}
    for kind, key, item in items:
        node = nodes.get(id(item)) if isinstance(item, torch.Tensor) else None
        if node is None or node.op in ("placeholder", "get_attr") or node in found:
            return None
        found[node] = kind, key, len(items)
    return found


def mark(results: Mapping[fx.Node, Part], tail: Sequence[fx.Node], name: str) -> None:
    """Has nodes remember that they are the result of the first half, or belong to the second."""
    for node, part in results.items():
        RESULT.put(node, part)
    for node in tail:
        ENTRY.put(node, name)


def unmark(graph: fx.Graph) -> None:
    """Has a graph forget where it can be cut."""
    for node in graph.nodes:
        RESULT.drop(node)
        ENTRY.drop(node)


@dataclass(frozen=True)
class Seam:
    """Where a graph is cut.

    Attributes:
        tail: the nodes of the second half.
        handed: what it reads of the first, in order.
        again: what it computes again, from state and from what it is handed.
        as_marked: whether what is handed is what the first half returned when it was captured.
    """

    tail: set[fx.Node]
    handed: tuple[fx.Node, ...]
    again: tuple[fx.Node, ...]
    as_marked: bool


def cut(graph: fx.Graph) -> Seam | None:
    """Where a graph is cut: before its marked nodes and all that reads them; None if nowhere."""
    tail = _tail(graph)
    if not tail or _has_effects_behind(graph, tail):
        return None
    tail.add(graph.output_node())
    read = {n for node in tail for n in node.all_input_nodes} - tail
    marked = {n for n in graph.nodes if RESULT.get(n)} - tail
    base = {n for n in read if not (_is_plain(n) or n.op == "get_attr")}
    base |= marked if base <= marked else set()  # returned, if not read
    again: set[fx.Node] = set()
    handed = base | {n for n in read if not _follows(n, base, again)}
    if not handed or any(n.op == "placeholder" for n in handed):
        return None
    in_order = [n for n in graph.nodes if n in handed]
    parts = [RESULT.get(n) for n in in_order]
    exact = all(parts) and len(parts) == parts[0][2] and len({p[1] for p in parts}) == len(parts)
    copied = tuple(n for n in graph.nodes if n in again and n not in handed)
    return Seam(tail, tuple(in_order), copied, exact)


def _tail(graph: fx.Graph) -> set[fx.Node]:
    """The nodes of the second half; where all of them were replaced, what reads the first's result.

    So what is put behind the result is part of the first half as long as the second one begins.
    """
    begins = {n for n in graph.nodes if ENTRY.get(n)}
    if not begins:
        results = {n for n in graph.nodes if RESULT.get(n)}
        begins = {n for n in graph.nodes if not results.isdisjoint(n.all_input_nodes)} - results
    tail: set[fx.Node] = set()
    for node in graph.nodes:
        if node in begins or not tail.isdisjoint(node.all_input_nodes):
            tail.add(node)
    return tail - {graph.output_node()}


def _has_effects_behind(graph: fx.Graph, tail: set[fx.Node]) -> bool:
    """Whether something of the first half has to happen after something of the second."""
    begun = changed = False
    for node in graph.nodes:
        if node in tail:
            begun, changed = True, changed or is_inplace(node.target)
            continue
        reads = node.op in ("get_attr", "output") or is_guard(node) or is_size(node)
        acts = changed or is_impure(node) or node.op == "call_module"
        if begun and acts and not reads:
            return True
    return False


def _is_plain(node: fx.Node) -> bool:
    """Whether a node computes a number, a dtype or a choice of numbers, and nothing else."""
    if node.op not in ("call_function", "call_method") or is_impure(node):
        return False
    value = VALUE.get(node)
    if isinstance(value, torch.Tensor) or ARITY.on(node):
        return False
    known = node.target in (by_mode, by_size, getattr) or is_size(node)
    return known or isinstance(value, (bool, int, float))


def _follows(node: fx.Node, base: set[fx.Node], again: set[fx.Node]) -> bool:
    """Whether a node can be computed again from state and `base`; notes it and what it needs."""
    if node in base or node in again:
        return True
    if node.op != "get_attr":
        inputs = node.all_input_nodes
        if not _is_plain(node) or not all(_follows(n, base, again) for n in inputs):
            return False
    again.add(node)
    return True


def halves(graph: fx.Graph) -> tuple[fx.Graph, fx.Graph] | None:
    """Both halves as graphs of their own, whose nodes keep their names and meta; or None."""
    found = cut(graph)
    return None if found is None else (_first(graph, found), _second(graph, found))


def handed_over(graph: fx.Graph) -> Any:
    """What the first half returns, as values; None where it is not what was marked."""
    found = cut(graph)
    if found is None or not found.as_marked:
        return None
    return fx.node.map_arg(_packed(list(found.handed), True), VALUE.of)


def _first(graph: fx.Graph, found: Seam) -> fx.Graph:
    result = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node not in found.tail:
            _copy(node, result, mapping)
    result.output(_packed([mapping[n] for n in found.handed], found.as_marked))
    return result


def _second(graph: fx.Graph, found: Seam) -> fx.Graph:
    result = fx.Graph()
    mapping = _unpacked(result, found)
    for node in graph.nodes:
        if node in found.again or node in found.tail:
            _copy(node, result, mapping)
    return result


def _copy(node: fx.Node, graph: fx.Graph, mapping: dict[fx.Node, fx.Node]) -> None:
    mapping[node] = graph.node_copy(node, lambda n: mapping[n])
    copied(node, mapping[node])


def _packed(nodes: list[fx.Node], as_marked: bool) -> Any:
    """What the first half returns."""
    if not as_marked:
        return nodes[0] if len(nodes) == 1 else tuple(nodes)
    by_key = {RESULT.of(node)[1]: node for node in nodes}
    kind = RESULT.of(nodes[0])[0]
    if kind == "dict":
        return by_key
    items = [by_key[key] for key in sorted(by_key, key=lambda k: k or 0)]
    return {"": items[0], "list": items, "tuple": tuple(items)}[kind]


def _unpacked(graph: fx.Graph, found: Seam) -> dict[fx.Node, fx.Node]:
    """The input of the second half, and what stands for each value in it."""
    nodes = found.handed
    kind = RESULT.of(nodes[0])[0] if found.as_marked else "tuple" if len(nodes) > 1 else ""
    if not kind:
        given = graph.placeholder(nodes[0].name)
        copied(nodes[0], given, VALUE, HINT, ARITY)
        return {nodes[0]: given}
    given = graph.placeholder("features")
    HINT.put(given, "features")
    if kind != "dict":
        ARITY.put(given, RESULT.of(nodes[0])[2] if found.as_marked else len(nodes))
    mapping = {}
    for i, node in enumerate(nodes):
        key = RESULT.of(node)[1] if found.as_marked else i
        mapping[node] = graph.call_function(operator.getitem, (given, key))
        copied(node, mapping[node], VALUE, HINT, ARITY)
    return mapping
