"""Attention while clauses run: one call of SDPA, and beside it what reads its scores and weights.

SDPA yields neither, so `scores_of` and `weights_of` stand for them in the graph. Once all clauses
are through, an attention whose scores or weights are read is written out, in this order: scale,
bias of the scores, softmax or what a pass has instead, weights as they are read, dropout, values.
The weights of a single query, for which `row_of` stands, are computed beside SDPA, which stays.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from ..anatomy.sites import Place
from ..tracing.modes import by_mode
from ..tracing.notes import ASIDE, HELD, HINT, PAIRS, ROWS, SOFTMAX, VALUE, WRITTEN, copied
from ..tracing.template import eliminate_dead_code
from .editor import Editor, after, units
from .slices import ahead

_OPERANDS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")


def scores_of(attended: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Stands for the scores of an attention, [..., queries, keys]: the shape alone is right."""
    return attended.new_empty((*attended.shape[:-1], key.shape[-2]))


def weights_of(attended: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Stands for the weights of an attention on tokens, not on rows that were put beside keys."""
    return attended.new_empty((*attended.shape[:-1], key.shape[-2]))


def row_of(attended: torch.Tensor, key: torch.Tensor, token: int) -> torch.Tensor:
    """Stands for the weights of one query on tokens, averaged over heads: [batch, keys]."""
    return attended.new_empty((attended.shape[0], key.shape[-2]))


STAND_INS = (scores_of, weights_of)


@dataclass(frozen=True)
class WrittenOut:
    """How an attention was written out, beside what its nodes say.

    Attributes:
        bias: what is done with the bias of its scores: "" where there is none, "added", or
            "hidden" if it is a mask.
        dropped: whether its weights are dropped in training.
        read: the name of the node that holds its weights on tokens, if anything reads them.
        rows: the same of the weights of single queries, by token.
    """

    bias: str
    dropped: bool
    read: str = ""
    rows: Mapping[int, str] = field(default_factory=dict)


def standing(core: fx.Node, target: Any) -> fx.Node | None:
    """What stands for the scores or the weights of an attention, if anything reads them."""
    return next((user for user in core.users if user.target is target), None)


def stand(core: fx.Node, target: Any, key: fx.Node, hint: str) -> fx.Node:
    """What stands for the scores of an attention, or its weights on some keys, from now on."""
    found = standing(core, target)
    if found is not None:
        return found
    with core.graph.inserting_after(core):
        found = core.graph.call_function(target, (core, key))
    HINT.put(found, hint)
    known = [VALUE.get(node) for node in (core, key)]
    if all(isinstance(value, torch.Tensor) for value in known):
        VALUE.put(found, scores_of(*(value.detach().to("meta") for value in known)))
    return found


def stand_row(core: fx.Node, key: fx.Node, token: int) -> fx.Node:
    """What stands for the weights of one query on some keys, from now on."""
    known = (user for user in rows_of(core) if user.args[2] == token)
    if (found := next(known, None)) is not None:
        return found
    with core.graph.inserting_after(core):
        found = core.graph.call_function(row_of, (core, key, token))
    HINT.put(found, "weights")
    values = [VALUE.get(node) for node in (core, key)]
    if all(isinstance(value, torch.Tensor) for value in values):
        attended, keys = (value.detach().to("meta") for value in values)
        VALUE.put(found, row_of(attended, keys, token))
    return found


def rows_of(core: fx.Node) -> list[fx.Node]:
    """What stands for the weights of single queries."""
    return [user for user in core.users if user.target is row_of]


def softmax_of(core: fx.Node) -> fx.Node | None:
    """The call that makes the weights of an attention instead of the softmax, if there is one."""
    scores = standing(core, scores_of)
    return next((n for n in scores.users if SOFTMAX.on(n)), None) if scores is not None else None


def given(core: fx.Node) -> dict[str, Any]:
    """The arguments of a call of SDPA by name."""
    return {**dict(zip(_OPERANDS, core.args, strict=False)), **core.kwargs}


def settle(editor: Editor) -> None:
    """Writes out every attention whose scores or weights are read, or single rows beside it."""
    for path, unit in list(units(editor.root)):
        if unit.template is None or not any(_stands(n) for n in unit.template.graph.nodes):
            continue
        graph = editor.graph(path)
        eliminate_dead_code(graph)
        for core in dict.fromkeys(n.args[0] for n in graph.nodes if _stands(n)):
            assert isinstance(core, fx.Node)
            read, rows = standing(core, weights_of), dict[Any, str]()
            rows |= {n.args[2]: n.name for n in rows_of(core)}
            if all(standing(core, target) is None for target in STAND_INS):
                _write_aside(core)
                made = ASIDE.of(core)
            else:
                result = write_out(core)
                made = WRITTEN.of(result).rows
                _move(editor, path, core.name, result.name)
                if read is not None:
                    _move(editor, path, read.name, WRITTEN.of(result).read)
            for token, name in rows.items():
                _move(editor, path, name, made[token])
    editor.clean()


def _stands(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target in (*STAND_INS, row_of)


def _write_aside(core: fx.Node) -> None:
    """Computes the weights of single queries in front of a call of SDPA, from what it is given."""
    made, graph = dict[Any, str](), core.graph
    for row in rows_of(core):
        with graph.inserting_before(core):
            scores, _ = _scores(core, row.args[2])
            HINT.put(scores, "scores")
            weights = graph.call_method("softmax", (scores, -1))
            HINT.put(weights, "weights")
            made[row.args[2]] = _averaged(_cut(weights, core), row).name
    ASIDE.put(core, made)


def _averaged(weights: fx.Node, row: fx.Node) -> fx.Node:
    """The mean over heads of the weights of one query, in place of what stands for it."""
    made = weights.graph.call_method("mean", (weights, (1, 2)))
    HINT.put(made, "weights")
    _take_place(made, row)
    return made


def _row(graph: fx.Graph, value: Any, token: Any, dims: int) -> fx.Node:
    """One row of what has one for each query, [..., queries, channels or keys]."""
    index = (*[slice(None)] * (dims - 2), slice(token, token + 1))
    return graph.call_function(operator.getitem, (value, index))


def write_out(core: fx.Node) -> fx.Node:
    """Rewrites a call of SDPA as softmax(scale * q @ k.T + bias) @ v, or with its own softmax.

    Returns:
        The product with the values.
    """
    own, graph = softmax_of(core), core.graph
    marker, read = (standing(core, target) for target in STAND_INS)
    if own is not None:
        _hoist(core, own)
    rate = given(core).get("dropout_p")
    with graph.inserting_before(core):
        scores, bias = _scores(core)
        HINT.put(scores, "scores")
        if marker is not None:
            _take_place(scores, marker)
        if own is None:
            weights = graph.call_method("softmax", (scores, -1))
            HINT.put(weights, "weights")
        else:
            weights = own
            HELD.drop(own)
            core.prepend(own)
        tokens, rows = weights, dict[Any, str]()
        if read is not None or rows_of(core):
            tokens = _cut(weights, core)
        for row in rows_of(core):
            picked = _row(graph, tokens, row.args[2], VALUE.of(core).dim())
            rows[row.args[2]] = _averaged(picked, row).name
        if read is not None:
            _take_place(tokens, read)
        dropped = _dropped(weights, rate) if rate else weights
        result = graph.call_function(operator.matmul, (dropped, given(core)["value"]))
    copied(core, result)
    ASIDE.drop(result)
    named = "" if read is None else tokens.name
    WRITTEN.put(result, WrittenOut(bias, bool(rate), named, rows))
    core.replace_all_uses_with(result)
    graph.erase_node(core)
    return result


def _dropped(weights: fx.Node, rate: Any) -> fx.Node:
    """The weights with some left out; SDPA is told a rate where a dropout is told the mode."""
    args: tuple[Any, ...] = (weights, rate)
    if isinstance(rate, fx.Node) and rate.target is by_mode and rate.args[2] == 0:
        args = (weights, rate.args[1], rate.args[0])
    return weights.graph.call_function(F.dropout, args)


def _rate(dropped: fx.Node) -> Any:
    """What SDPA is told of a dropout."""
    _, rate, *training = dropped.args
    return dropped.graph.call_function(by_mode, (*training, rate, 0.0)) if training else rate


def _cut(weights: fx.Node, core: fx.Node) -> fx.Node:
    """The weights on the tokens, without those on rows that were put beside keys."""
    before, behind = ROWS.get(core, (0, 0))
    if not (before or behind):
        return weights
    whole = [slice(None)] * (VALUE.of(core).dim() - 1)
    index = (*whole, slice(before or None, -behind or None))
    tokens = core.graph.call_function(operator.getitem, (weights, index))
    HINT.put(tokens, "weights")
    return tokens


def _take_place(node: fx.Node, marker: fx.Node) -> None:
    if VALUE.on(marker):
        VALUE.put(node, VALUE.of(marker))
    marker.replace_all_uses_with(node)
    marker.graph.erase_node(marker)


def _scores(core: fx.Node, token: Any = None) -> tuple[fx.Node, str]:
    """The scores of an attention, or of one query, and what is done with their bias."""
    known, graph = given(core), core.graph
    query, bias, scale = known["query"], known.get("attn_mask"), known.get("scale")
    if scale is None:
        scale = VALUE.of(query).shape[-1] ** -0.5
    if token is not None:
        query = _row(graph, query, token, VALUE.of(query).dim())
        if isinstance(bias, fx.Node) and is_per_query(bias):
            shape = VALUE.get(bias, VALUE.of(core)).shape
            bias = _row_of_bias(bias, _row(graph, bias, token, len(shape)))
    scaled = graph.call_function(operator.mul, (query, scale))
    turned = graph.call_method("transpose", (known["key"], -2, -1))
    scores = graph.call_function(operator.matmul, (scaled, turned))
    if not isinstance(bias, fx.Node):
        return scores, ""
    if not is_boolean(bias):
        return graph.call_function(operator.add, (scores, bias)), "added"
    hidden = graph.call_function(operator.invert, (bias,))
    masked = graph.call_method("masked_fill", (scores, hidden, -math.inf))
    return masked, "hidden"


def _row_of_bias(bias: fx.Node, row: fx.Node) -> fx.Node:
    """One row of a bias, which is a mask where that is."""
    if isinstance(value := VALUE.get(bias), torch.Tensor):
        VALUE.put(row, value[..., :1, :])
    return row


def is_per_query(bias: fx.Node) -> bool:
    """Whether what is added to scores differs between queries."""
    value = VALUE.get(bias)
    if isinstance(value, torch.Tensor):
        return value.dim() > 1 and value.shape[-2] > 1
    sums = (operator.add, torch.where, F.pad)
    return PAIRS.on(bias) or (bias.target in sums and any(map(is_per_query, bias.all_input_nodes)))


def is_boolean(bias: fx.Node) -> bool:
    """Whether a bias of scores is a mask, true where a query sees a key."""
    value = VALUE.get(bias)
    return isinstance(value, torch.Tensor) and value.dtype == torch.bool


def _hoist(core: fx.Node, own: fx.Node) -> None:
    """Moves what an own softmax is given in front of the attention."""
    order = {node: i for i, node in enumerate(core.graph.nodes)}
    needed = ahead([n for n in own.all_input_nodes if not _stands(n)])
    for node in sorted((n for n in needed if order[n] > order[core]), key=order.__getitem__):
        core.prepend(node)


def _weights_in(result: fx.Node) -> fx.Node:
    """The weights of an attention that is written out, before they are dropped."""
    weights = result.args[0]
    assert isinstance(weights, fx.Node)
    source = weights.args[0] if WRITTEN.of(result).dropped else weights
    assert isinstance(source, fx.Node)
    return source


def gather(editor: Editor, place: Place, tokens: Callable[[fx.Node], fx.Node]) -> fx.Node | None:
    """One call of SDPA in place of an attention that `settle` wrote out; None if it did not.

    Args:
        editor: of the model.
        place: of the attention.
        tokens: finds the keys of the tokens among all keys.
    """
    result = editor.node(place)
    if not WRITTEN.on(result):
        return None
    written, graph, weights = WRITTEN.of(result), result.graph, _weights_in(result)
    scores: Any = weights.args[0]
    product, kwargs = scores, dict[str, Any]()
    if written.bias:
        product, bias = scores.args[:2]
        kwargs["attn_mask"] = bias if written.bias == "added" else bias.args[0]
    scaled, turned = product.args
    key, value = turned.args[0], result.args[1]
    dropped: Any = result.args[0]
    with after(graph, [weights, value]):  # type: ignore[list-item]
        if written.dropped:
            kwargs["dropout_p"] = _rate(dropped)
        core = graph.call_function(
            F.scaled_dot_product_attention,
            (scaled.args[0], key, value),
            {**kwargs, "scale": scaled.args[1]},
        )
    copied(result, core)
    WRITTEN.drop(core)
    result.replace_all_uses_with(core)
    graph.erase_node(result)
    if written.dropped:
        graph.erase_node(dropped)
    _move(editor, place.unit, place.node, core.name)
    read = next((n for n in graph.nodes if n.name == written.read), None)
    if read is not None:
        marker = stand(core, weights_of, tokens(key), "weights")
        read.replace_all_uses_with(marker)
        _move(editor, place.unit, read.name, marker.name)
    _stand_again(editor, place.unit, core, written.rows, tokens)
    if SOFTMAX.on(weights):
        weights.replace_input_with(scores, stand(core, scores_of, key, "scores"))
        HELD.put(weights, True)
        _behind(weights)
    eliminate_dead_code(graph)
    return core


def take_back(editor: Editor, place: Place, tokens: Callable[[fx.Node], fx.Node]) -> None:
    """What `settle` computed beside a call of SDPA is only stood for again."""
    core = editor.node(place)
    _stand_again(editor, place.unit, core, ASIDE.drop(core) or {}, tokens)
    eliminate_dead_code(core.graph)


def _stand_again(
    editor: Editor,
    unit: str,
    core: fx.Node,
    rows: Mapping[int, str],
    tokens: Callable[[fx.Node], fx.Node],
) -> None:
    nodes = {n.name: n for n in core.graph.nodes}
    for token, name in rows.items():
        if name in nodes:
            marker = stand_row(core, tokens(given(core)["key"]), token)
            nodes[name].replace_all_uses_with(marker)
            _move(editor, unit, name, marker.name)


def _move(editor: Editor, unit: str, old: str, new: str) -> None:
    """Says where a value is now; it may be where it was before."""
    editor.moved.pop(Place(unit, new), None)
    if old != new:
        editor.moved[Place(unit, old)] = Place(unit, new)


def _behind(node: fx.Node) -> None:
    """Moves a node right behind the last of what it reads."""
    order = {n: i for i, n in enumerate(node.graph.nodes)}
    max(node.all_input_nodes, key=order.__getitem__).append(node)
