"""What hangs on the sizes of tokens: put in once all clauses have changed the tokens."""

from __future__ import annotations

import operator
from itertools import pairwise

import torch.nn.functional as F
from torch import fx

from ..anatomy.sites import Anatomy, Mean, Place
from ..editing import attended
from ..editing.editor import Editor
from ..editing.stream import Stream
from ..editing.value import Value
from ..errors import caused_at
from ..tracing.notes import HELD, HINT, ORIGIN, VALUE, copied
from .block import BlockSite
from .context import Context


def settle(editor: Editor, anatomy: Anatomy, stream: Stream) -> None:
    """Gives sizes to what regroups tokens, to scores, and to pooling.

    Raises:
        RewriteError: VR410 if the scores of an attention take no bias.
    """
    made = stream.sizes()
    for (_, before, _), (position, size, clause) in pairwise(made):
        with caused_at(clause.span):
            _give(editor, before, size, bool(stream.known(position - 1).joined))
    scores = stream.counts("in_scores")
    for block in anatomy.blocks if scores is not None and scores.value else ():
        position = 2 * block.index
        known, cause = stream.known(position).size, stream.cause(position, "size")
        if known is not None and cause is not None and block.attn is not None:
            with caused_at(cause.span):
                site = BlockSite(Context(editor, cause, anatomy, stream), block)
                site.attn.bias_keys(known.log())
    if made:
        _pool(editor, anatomy, stream)
    for _, size, _ in made:
        HELD.drop(editor.node(size.place))
    finish(editor)


def finish(editor: Editor) -> None:
    """Does what verbs left for later; writes out attentions whose scores or weights are read."""
    for act in editor.later:
        act()
    editor.later.clear()
    editor.clean()
    attended.settle(editor)


def _give(editor: Editor, before: Value, size: Value, joined: bool) -> None:
    """What makes `size` is called with the sizes before as its last argument."""
    place = editor.where(size.place)
    call = editor.node(place).args[0]
    assert isinstance(call, fx.Node)
    known = before.read(editor, place.unit)
    tokens = call.args[0]
    assert isinstance(tokens, fx.Node)
    call.args = (*call.args, _filled(known, tokens, call) if joined else known)


def _filled(size: fx.Node, tokens: fx.Node, anchor: fx.Node) -> fx.Node:
    """With ones in front for tokens that joined the prefix, as many as there are then."""
    with size.graph.inserting_before(anchor):
        lengths = [size.graph.call_method("size", (node, 1)) for node in (tokens, size)]
        missing = size.graph.call_function(operator.sub, tuple(lengths))
        for node in (*lengths, missing):
            VALUE.put(node, 1)
        return size.graph.call_function(F.pad, (size, (missing, 0)), {"value": 1.0})


def _pool(editor: Editor, anatomy: Anatomy, stream: Stream) -> None:
    """Means over tokens weigh each by the patches that it stands for."""
    stated, end = stream.counts("in_pooling"), stream.known(2 * len(anatomy.blocks))
    if stated is None or not stated.value or end.size is None or not stream.pooled:
        return
    for mean in anatomy.stream.means:
        _weigh(editor, mean, end.size, bool(end.joined), stated.clause.origin)
    if not anatomy.stream.means:
        editor.warnings.append(
            f"{stated.clause.origin}: the head pools tokens, not by their mean, and merged ones "
            "count once"
        )


def _weigh(editor: Editor, mean: Mean, size: Value, joined: bool, origin: str) -> None:
    """`(x * size).sum(1) / size.sum(1)` instead of `x.mean(1)`."""
    place = editor.where(mean.place)
    node = editor.node(place)
    x = node.all_input_nodes[0]
    weight = size.read(editor, place.unit)
    if joined:
        weight = _filled(weight, _uncut(x, len(mean.pieces)), node)
    every, keep = slice(None), dict(node.kwargs).get("keepdim", node.args[2:3] == (True,))
    with node.graph.inserting_before(node):
        for start, stop in mean.pieces:
            index = (every, slice(start, stop))
            weight = node.graph.call_function(operator.getitem, (weight, index))
        weight = node.graph.call_function(operator.getitem, (weight, (every, every, None)))
        weighed = node.graph.call_function(operator.mul, (x, weight))
        sums = [
            node.graph.call_method("sum", (n, 1, *([True] if keep else [])))
            for n in (weighed, weight)
        ]
        pooled = node.graph.call_function(operator.truediv, tuple(sums))
    HINT.put(weight, "weight")
    copied(node, pooled)
    ORIGIN.put(pooled, origin)
    node.replace_all_uses_with(pooled)
    node.graph.erase_node(node)
    editor.moved[place] = Place(place.unit, pooled.name)


def _uncut(x: fx.Node, cuts: int) -> fx.Node:
    """The tokens before some cuts."""
    while cuts:
        cuts -= x.target is operator.getitem
        x = x.all_input_nodes[0]
    return x
