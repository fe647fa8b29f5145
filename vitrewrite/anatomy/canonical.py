"""One form for attention: a manual one becomes `scaled_dot_product_attention`.

Rewritten is `softmax(scale * q @ k.T + bias) @ v`, where the scale may stand anywhere before the
bias, the bias may be a sum of several, the scores may be reshaped on the way (windows), and the
probabilities may be dropped. What is not of that form (heads that talk) stays.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from ..tracing import walk
from ..tracing.modes import by_mode
from ..tracing.notes import VALUE, copied
from ..tracing.template import eliminate_dead_code
from ..tracing.unit import Unit
from .emitting import emit

_MATMULS = (operator.matmul, torch.matmul, torch.bmm)
_ADDS = (operator.add, operator.iadd, torch.add)
_TIMES = (operator.mul, operator.imul, torch.mul)
_OVER = (operator.truediv, operator.itruediv, torch.div)
_VIEWS = ("view", "reshape", "unsqueeze", "squeeze", "contiguous")
_CASTS = ("to", "type_as", "float")


def canonicalise(root: nn.Module) -> int:
    """Rewrites the manual attentions in the templates of a captured tree, in place.

    Returns:
        how many places were rewritten; a template counts once, however often it is used.
    """
    users: dict[int, list[Unit]] = {}
    for module in walk.modules(root):
        if isinstance(module, Unit) and module.template is not None:
            users.setdefault(id(module.template), []).append(module)
    count = 0
    for units in users.values():
        assert units[0].template is not None
        for graph in units[0].template.graphs:
            count += _rewrite_all(graph, units)
    return count


def _rewrite_all(graph: fx.Graph, units: list[Unit]) -> int:
    found = [m for n in graph.nodes if _is_softmax(n, units) and (m := _match(n, units))]
    done = [_Rewriter(graph, match).run() is not None for match in found]
    if found:
        eliminate_dead_code(graph)
    return sum(done)


def canonicalise_at(unit: Unit, core: fx.Node) -> fx.Node | None:
    """Rewrites the manual attention whose last product is `core`, in a graph of that unit alone.

    Returns:
        the call of SDPA, or None if the attention is of another form.
    """
    _split_sums(core)
    for node in core.graph.nodes:
        match = _match(node, [unit]) if _is_softmax(node, [unit]) else None
        if match is not None and match.core is core:
            graph = core.graph
            made = _Rewriter(graph, match).run()
            eliminate_dead_code(graph)
            return made
    return None


def _split_sums(core: fx.Node) -> None:
    """`baddbmm(bias, q, k)` in front of a product becomes a product and a sum."""
    for node in list(core.graph.nodes):
        if node.target is torch.baddbmm and len(node.args) == 3 and not node.kwargs:
            bias, query, key = node.args
            with node.graph.inserting_before(node):
                scores = node.graph.call_function(torch.bmm, (query, key))
                total = node.graph.call_function(operator.add, (scores, bias))
            copied(node, scores)
            copied(node, total)
            node.replace_all_uses_with(total)
            node.graph.erase_node(node)
        if node is core:
            break


@dataclass
class _Match:
    """The nodes of a manual attention.

    Attributes:
        path: from the product of q and k to the softmax, without either, in order.
        tail: from the softmax to the product with v, without that.
    """

    scores: fx.Node
    path: list[fx.Node]
    tail: list[fx.Node]
    core: fx.Node
    dropout: float = 0.0
    gone: list[fx.Node] = field(default_factory=list)


def _match(softmax: fx.Node, units: list[Unit]) -> _Match | None:
    start = softmax.args[0]
    if not isinstance(start, fx.Node):
        return None
    path = _path(start)
    core, tail, dropout = _tail(softmax, units)
    if path is None or core is None:
        return None
    match = _Match(path[0], path[1:], tail, core, dropout)
    inside = {*path, *tail, *_overwrites(path[0]), core}
    for node in inside - {core}:
        if any(user not in inside for user in node.users):
            return None  # somebody else reads the scores
    match.gone = sorted(inside, reverse=True)
    return match if _fits(match) else None


def _fits(match: _Match) -> bool:
    """Whether the operands have the shapes that SDPA wants."""
    q, k = match.scores.args[:2]
    v = match.core.args[1]
    shapes = [_shape(n) for n in (q, k, v)]
    if any(len(s) < 3 or len(s) != len(shapes[0]) for s in shapes):
        return False
    return shapes[0][:-2] == shapes[1][:-2] == shapes[2][:-2]


def _is_softmax(node: fx.Node, units: list[Unit]) -> bool:
    """Whether a node is a softmax over the last axis, in every instance."""
    if node.op == "call_module":
        layers = [u.get_submodule(str(node.target)) for u in units]
        dims: list[Any] = [layer.dim for layer in layers if isinstance(layer, nn.Softmax)]
        if len(dims) < len(layers):
            return False
    elif node.target in ("softmax", torch.softmax, functional.softmax):
        dims = [node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")]
    else:
        return False
    last = len(_shape(node)) - 1
    return bool(dims) and all(d in (-1, last) for d in dims)


def _path(node: fx.Node) -> list[fx.Node] | None:
    """From the product of q and k to `node`, both included."""
    if node.target in _MATMULS:
        return _through_overwrite(node)
    sources: Iterable[Any] = node.args[:1]
    if node.target in _ADDS:
        sources = node.args[:2]
    elif not (node.target in _TIMES + _OVER or node.target in _VIEWS + _CASTS or _is_whole(node)):
        return None
    for source in sources:
        if isinstance(source, fx.Node) and math.prod(_shape(source)) == math.prod(_shape(node)):
            found = _path(source)
            if found is not None:
                return [*found, node]
    return None


def _through_overwrite(scores: fx.Node) -> list[fx.Node] | None:
    """The path through `scores[:] = f(scores)`, if the scores are overwritten so."""
    overwrites = _overwrites(scores)
    if not overwrites:
        return [scores]
    value = overwrites[0].args[2]
    if len(overwrites) > 1 or not _is_whole(overwrites[0]) or not isinstance(value, fx.Node):
        return None
    path = _value_path(value, scores)
    return None if path is None else [scores, *path]


def _value_path(node: fx.Node, scores: fx.Node) -> list[fx.Node] | None:
    """From `scores` (excluded) to the value that overwrites them."""
    if node is scores:
        return []
    sources = node.args[:2] if node.target in _ADDS else node.args[:1]
    if not (node.target in _ADDS or node.target in _VIEWS + _CASTS or _is_whole(node)):
        return None
    for source in sources:
        if isinstance(source, fx.Node):
            found = _value_path(source, scores)
            if found is not None:
                return [*found, node]
    return None


def _overwrites(scores: fx.Node) -> list[fx.Node]:
    return [u for u in scores.users if u.target is operator.setitem and u.args[0] is scores]


def _is_whole(node: fx.Node) -> bool:
    """Whether a subscript takes or sets everything."""
    if node.target not in (operator.getitem, operator.setitem):
        return False
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    return all(
        isinstance(i, slice) and i.start in (None, 0) and i.stop is i.step is None for i in index
    )


def _tail(softmax: fx.Node, units: list[Unit]) -> tuple[fx.Node | None, list[fx.Node], float]:
    """The product with the values, the nodes before it, and the rate of dropout."""
    tail, rate, node = [softmax], 0.0, softmax
    while len(node.users) == 1:
        user = next(iter(node.users))
        if user.target in _MATMULS and user.args[0] is node:
            return user, tail, rate
        found = 0.0 if user.target in _CASTS else _dropout_rate(user, units)
        if found is None or user.args[0] is not node:
            break
        rate = found or rate
        tail.append(user)
        node = user
    return None, [], 0.0


def _dropout_rate(node: fx.Node, units: list[Unit]) -> float | None:
    """The rate of a dropout, None if it is something else or differs between instances."""
    if node.op == "call_module":
        layers = [u.get_submodule(str(node.target)) for u in units]
        if all(isinstance(layer, nn.Identity) for layer in layers):
            return 0.0
        rates = {layer.p if isinstance(layer, nn.Dropout) else None for layer in layers}
        return rates.pop() if len(rates) == 1 else None
    if node.target is functional.dropout:
        named = dict(zip(("input", "p", "training"), node.args, strict=False)) | node.kwargs
        rate, training = named.get("p", 0.5), named.get("training", True)
        if training is False:
            return 0.0
        follows_mode = isinstance(training, fx.Node)  # else it drops in eval mode too
        return rate if follows_mode and isinstance(rate, float) else None
    return None


def _shape(node: Any) -> tuple[int, ...]:
    value = VALUE.get(node) if isinstance(node, fx.Node) else None
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()


class _AbortError(Exception):
    """The scores are changed in a way that no bias expresses."""


class _Rewriter:
    """Writes the SDPA call of one match in front of its last product."""

    def __init__(self, graph: fx.Graph, match: _Match) -> None:
        self.graph = graph
        self.match = match
        self.scale = 1.0
        self.bias: fx.Node | None = None

    def run(self) -> fx.Node | None:
        """Rewrites, unless the scores turn out to be more than scaled and biased."""
        match, graph = self.match, self.graph
        query, key = (a for a in match.scores.args[:2] if isinstance(a, fx.Node))
        with graph.inserting_before(match.core):
            try:
                query = self._follow_path(self._unscaled(query), key)
            except _AbortError:
                return None
            key = self._unscaled(self._untransposed(self._unscaled(key)))
            kwargs: dict[str, Any] = {}
            if self.bias is not None:
                kwargs["attn_mask"] = self.bias
            if match.dropout:
                kwargs["dropout_p"] = self._by_mode(match.dropout)
            kwargs["scale"] = self.scale
            call = graph.call_function(
                functional.scaled_dot_product_attention, (query, key, match.core.args[1]), kwargs
            )
        copied(match.core, call)
        match.core.replace_all_uses_with(call)
        for node in match.gone:
            graph.erase_node(node)
        return call

    def _follow_path(self, query: fx.Node, key: fx.Node) -> fx.Node:
        """Turns what happens to the scores into scale, factors of the query, and bias."""
        full = _shape(self.match.scores)
        before = self.match.scores
        for node in self.match.path:
            if node.target in _ADDS:
                other = node.args[1] if node.args[0] is before else node.args[0]
                self._add_bias(other)
            elif node.target in _TIMES + _OVER:
                query = self._scaled(query, node, before)
            elif node.target not in _CASTS and not _is_whole(node):
                self._reshape_bias(node, _shape(before), full, query, key)
            before = node
        if _shape(before) != full:
            raise _AbortError
        return query

    def _add_bias(self, other: Any) -> None:
        if not isinstance(other, fx.Node):
            raise _AbortError
        self.bias = other if self.bias is None else self._emit(operator.add, self.bias, other)

    def _scaled(self, query: fx.Node, node: fx.Node, before: fx.Node) -> fx.Node:
        factor = node.args[1] if node.args[0] is before else node.args[0]
        divides = node.target in _OVER
        if self.bias is not None or (divides and node.args[0] is not before):
            raise _AbortError
        if isinstance(factor, (int, float)):
            self.scale *= 1 / factor if divides else factor
            return query
        shape = _shape(factor)
        if shape and (len(shape) > len(_shape(query)) or set(shape[-2:]) != {1}):
            raise _AbortError
        return self._emit(operator.truediv if divides else operator.mul, query, factor)

    def _reshape_bias(
        self,
        node: fx.Node,
        now: tuple[int, ...],
        full: tuple[int, ...],
        query: fx.Node,
        key: fx.Node,
    ) -> None:
        if self.bias is None:
            return
        if _shape(self.bias) != now:
            if now != full:
                raise _AbortError
            self.bias = self._expanded(self.bias, query, key)
        # A sum of broadcast terms need not lie in memory as the scores did.
        target = "reshape" if node.target == "view" else str(node.target)
        self.bias = self._emit(target, self.bias, *node.args[1:])

    def _expanded(self, bias: fx.Node, query: fx.Node, key: fx.Node) -> fx.Node:
        """The bias in the shape of the scores: without a copy, so that it can be reshaped."""
        shape = _shape(self.match.scores)
        own = (0,) * (len(shape) - len(_shape(bias))) + _shape(bias)
        lengths: list[Any] = []
        for dim, length in enumerate(shape):
            last = dim == len(shape) - 1
            if own[dim] == length:
                lengths.append(-1)
            else:
                lengths.append(self._emit("size", key if last else query, dim))
        return self._emit("expand", bias, *lengths)

    def _unscaled(self, node: fx.Node) -> fx.Node:
        """What is behind a product with a number, which joins the scale."""
        if node.target in _TIMES and len(node.users) == 1 and len(node.args) == 2:
            for factor, source in (node.args, node.args[::-1]):
                if isinstance(factor, (int, float)) and isinstance(source, fx.Node):
                    self.scale *= factor
                    return source
        return node

    def _untransposed(self, key: fx.Node) -> fx.Node:
        last = len(_shape(key))
        swaps = {(-2, -1), (-1, -2), (last - 2, last - 1), (last - 1, last - 2)}
        if key.target in ("transpose", "swapaxes", "swapdims") and key.args[1:] in swaps:
            source = key.args[0]
            assert isinstance(source, fx.Node)
            return source
        return self._emit("transpose", key, -2, -1)

    def _by_mode(self, rate: float) -> fx.Node:
        for node in self.graph.nodes:
            if node.op == "get_attr" and node.target == "training":
                return self.graph.call_function(by_mode, (node, rate, 0.0))
        last = [n for n in self.graph.nodes if n.op == "placeholder"][-1]
        with self.graph.inserting_after(last):
            training = self.graph.get_attr("training")
        return self.graph.call_function(by_mode, (training, rate, 0.0))

    def _emit(self, target: Any, *args: Any) -> fx.Node:
        return emit(self.graph, target, *args)
