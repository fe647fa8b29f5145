"""Dtypes as arguments: a constant that the source wrote, or one that it read off a tensor.

`x.to(torch.float32)` and `x.to(y.dtype)` look the same where `y` is in float32. So a use of a dtype
stays undecided, with all that it may be, until the trace in another dtype has been compared.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from .nodes import attribute_of
from .notes import VALUE

Choices = dict[fx.Node, list[Any]]
"""What each undecided use may be: the tensors whose dtype it equals, the dtype itself last."""


def same_as(value: torch.dtype, tensors: tuple[Any, ...]) -> torch.dtype:
    """A use of a dtype that is not decided yet: the constant, or the dtype of one of `tensors`.

    Args:
        value: the dtype.
        tensors: those of which the forward read this dtype, the latest last; also inputs that are
            dtypes.
    """
    return value


def is_use(value: Any) -> bool:
    """Whether a node is an undecided use of a dtype."""
    return isinstance(value, fx.Node) and value.target is same_as


def candidates(value: Any) -> tuple[Any, tuple[Any, ...]]:
    """The constant and the tensors that a use, or a dtype that equals no reading, may be."""
    if isinstance(value, fx.Node):
        constant, tensors = value.args
        assert isinstance(tensors, tuple)
        return constant, tensors
    return value, ()


def decide(graphs: Iterable[fx.Graph], choices: Choices) -> None:
    """Makes each use what it is: the latest reading that it may be, else the constant."""
    for graph in graphs:
        uses = [n for n in graph.nodes if n.target is same_as]
        for use in uses:
            constant, tensors = candidates(use)
            left = choices.get(use, list(tensors))
            readings = [t for t in tensors if t in left]
            _replace(use, _reading(readings[-1]) if readings else constant)
        if any(n.target in _LIMITS for n in graph.nodes):
            _fold(graph)
            _share(graph)


def _reading(node: fx.Node) -> fx.Node:
    is_dtype = node.op == "placeholder" and isinstance(VALUE.get(node), torch.dtype)
    return node if is_dtype else attribute_of(node, "dtype")


def _replace(node: fx.Node, value: Any) -> None:
    for user in list(node.users):
        user.args = fx.node.map_arg(user.args, lambda n: value if n is node else n)
        user.kwargs = fx.node.map_arg(user.kwargs, lambda n: value if n is node else n)
    node.graph.erase_node(node)


_LIMITS = (torch.finfo, torch.iinfo)
_NUMERIC = {
    operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, operator.pow,
    operator.floordiv, operator.abs, float, int,
}  # fmt: skip


def _fold(graph: fx.Graph) -> None:
    """Limits of a constant dtype are constants, and what is computed from these alone."""
    for node in list(graph.nodes):
        if node.target is getattr and isinstance(node.args[0], fx.Node):
            owner, name = node.args
            known = owner.target is torch.finfo and isinstance(owner.args[0], torch.dtype)
            if known:
                _replace(node, getattr(torch.finfo(owner.args[0]), str(name)))
        elif node.target in _NUMERIC and all(type(a) in (int, float) for a in node.args):
            _replace(node, node.target(*node.args))


def _share(graph: fx.Graph) -> None:
    """Limits of one dtype, and what is computed of them alone, are computed once per graph."""
    known: dict[Any, fx.Node] = {}
    limits: set[fx.Node] = set()
    for node in list(graph.nodes):
        of_limits = bool(node.all_input_nodes) and limits.issuperset(node.all_input_nodes)
        if node.target in _LIMITS or (of_limits and node.target in (getattr, *_NUMERIC)):
            twin = known.setdefault((node.target, node.args), node)
            limits.add(twin)
            if twin is not node:
                _replace(node, twin)
