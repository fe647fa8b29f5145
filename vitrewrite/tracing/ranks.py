"""Programs that are the same for tensors of any rank."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from .nodes import is_size, operand
from .notes import VALUE
from .template import Template


def of_any_rank(first: Template, second: Template) -> Template | None:
    """The program that two are, if they differ in the ranks of their inputs alone."""
    made = first.clone(), second.clone()
    for graph in (*made[0].graphs, *made[1].graphs):
        generalise(graph)
    return made[0] if made[0].same(made[1]) else None


def generalise(graph: fx.Graph) -> None:
    """Writes `(B, 1, 1)` for a mask per sample of x as `(B,) + (1,) * (x.ndim - 1)`.

    So a module that is used on sequences and on images, such as stochastic depth, is one class.
    """
    for node in list(graph.nodes):
        for shape in [a for a in node.args if isinstance(a, tuple)]:
            owner = _per_sample(shape)
            if owner is None:
                continue
            with graph.inserting_before(node):
                rank = graph.call_function(getattr, (owner, "ndim"))
                ones = graph.call_function(operator.sub, (rank, 1))
                tail = graph.call_function(operator.mul, ((1,), ones))
                whole = graph.call_function(operator.add, (shape[:1], tail))
            for made in (rank, ones):
                VALUE.put(made, 1)
            node.args = tuple(whole if a is shape else a for a in node.args)


def _per_sample(shape: tuple[Any, ...]) -> fx.Node | None:
    """The tensor x of rank n if the shape is its batch size and n - 1 ones."""
    first, rest = shape[:1], shape[1:]
    if not first or not is_size(first[0]) or first[0].args[1] != 0 or len(rest) < 1:
        return None
    owner = operand(first[0])
    value = VALUE.get(owner)
    ones = all(type(s) is int and s == 1 for s in rest)
    same = isinstance(value, torch.Tensor) and value.dim() == len(shape)
    return owner if ones and same else None
