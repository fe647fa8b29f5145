"""Pooling behind the blocks that knows how many patches each token stands for."""

from __future__ import annotations

import operator

import torch.nn.functional as F
from torch import fx

from ..anatomy.sites import Anatomy, Mean, Place
from ..editing.editor import Editor
from ..editing.stream import Stated, Stream
from ..editing.value import Value
from ..errors import RewriteError, caused_at
from ..tracing import walk
from ..tracing.notes import HINT, ORIGIN, VALUE, copied
from ..tracing.unit import Unit
from .attention import AttentionSite
from .context import Context


def kinds(anatomy: Anatomy) -> tuple[str, ...]:
    """How a model makes vectors of its tokens, in words; empty where that is not known."""
    stream = anatomy.stream
    known = {
        "token": stream.readout is not None,
        "mean": bool(stream.means),
        "attention": _reader(anatomy) is not None,
        "maximum": stream.peaks,
    }
    return tuple(kind for kind, holds in known.items() if holds)


def weigh(editor: Editor, anatomy: Anatomy, stream: Stream) -> None:
    """Has a token weigh in pooling as the patches do that it stands for, where a clause says so.

    In a mean it counts as often, in an attention log size is added to the scores of its key; the
    largest of the tokens stays what it is.

    Raises:
        RewriteError: VR410 if a clause says so itself, and how the model pools is not known.
    """
    stated, end = stream.counts("in_pooling"), stream.known(anatomy.end)
    if stated is None or not stated.value or end.size is None or not stream.pooled:
        return
    pool, reader = anatomy.pool, _reader(anatomy)
    for mean in anatomy.stream.means:
        if _is_there(editor, mean.place):
            _in_mean(editor, mean, end.size, bool(end.joined), stated.clause.origin)
    with caused_at(stated.clause.span):
        if pool is not None and reader is not None:
            site = AttentionSite(Context(editor, stated.clause, anatomy, stream), pool)
            cut = end.joined or any(start for start, _ in reader.pieces)
            if _is_there(editor, pool.core):
                _in_attention(site, end.size, reader.place if cut else None, stated)
        elif not kinds(anatomy):
            _unknown(editor, anatomy, stated)


def _reader(anatomy: Anatomy) -> Mean | None:
    """The layer of the keys of an attention that pools the tokens, or the last of them."""
    keys = None if anatomy.pool is None else anatomy.pool.k
    found = (r for r in anatomy.stream.readers if keys is not None and r.place == keys.call)
    return next((r for r in found if all(stop is None for _, stop in r.pieces)), None)


def _is_there(editor: Editor, place: Place) -> bool:
    """Whether a value is still made: a new head may not read what is pooled."""
    place = editor.where(place)
    unit = dict(walk.named(editor.root)).get(place.unit)
    template = unit.template if isinstance(unit, Unit) else None
    return template is not None and any(n.name == place.node for n in template.graph.nodes)


def _in_attention(site: AttentionSite, size: Value, keys: Place | None, stated: Stated) -> None:
    """Adds log size to the scores of the keys; `keys` makes them where they are not all tokens'."""
    editor = site.editor
    if keys is not None:
        node, place = editor.node(keys), editor.where(keys)
        weight = completed(size.read(editor, place.unit), node.all_input_nodes[0], node)
        size = Value(Place(place.unit, weight.name))
    try:
        site.bias_keys(size.log(), cast=True)
    except RewriteError:
        if stated.chosen:
            raise
        _unknown(editor, site.context.anatomy, stated)


def _unknown(editor: Editor, anatomy: Anatomy, stated: Stated) -> None:
    """Refuses what a clause says itself, and warns of a default."""
    clause, what = stated.clause, f"how {anatomy.model} pools its tokens is not known"
    if stated.chosen:
        raise clause.error(
            "VR410",
            f"{clause.pass_name} has sizes of tokens count in pooling, and {what}",
            stated.option,
            suggestion=f"write {stated.option}=false: a merged token counts once",
        )
    editor.warnings.append(f"{clause.origin}: {what}, and merged ones count once")


def _in_mean(editor: Editor, mean: Mean, size: Value, joined: bool, origin: str) -> None:
    """`((x * size).sum(1) / size.sum(1)).type_as(x)` instead of `x.mean(1)`."""
    place = editor.where(mean.place)
    node = editor.node(place)
    x = node.all_input_nodes[0]
    weight = size.read(editor, place.unit)
    if joined:
        weight = completed(weight, _uncut(x, len(mean.pieces)), node)
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
        pooled = node.graph.call_method("type_as", (pooled, x))
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


def completed(size: fx.Node, tokens: fx.Node, anchor: fx.Node) -> fx.Node:
    """With ones in front for tokens that joined the prefix, or without those that were cut off."""
    with size.graph.inserting_before(anchor):
        lengths = [size.graph.call_method("size", (node, 1)) for node in (tokens, size)]
        missing = size.graph.call_function(operator.sub, tuple(lengths))
        for node in (*lengths, missing):
            VALUE.put(node, 1)
        return size.graph.call_function(F.pad, (size, (missing, 0)), {"value": 1.0})
