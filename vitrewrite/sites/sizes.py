"""What hangs on the sizes of tokens: put in once all clauses have changed the tokens."""

from __future__ import annotations

from torch import fx

from ..anatomy.sites import Anatomy
from ..editing import attended
from ..editing.editor import Editor
from ..editing.stream import Regrouping, Stream
from ..editing.value import Value
from ..errors import caused_at
from ..tracing.notes import HELD
from .base import BoundSite
from .block import BlockSite
from .context import Context
from .pooling import completed, weigh
from .positions import has_positions, move
from .trail import Trail


def settle(editor: Editor, anatomy: Anatomy, stream: Stream) -> None:
    """Gives sizes to what regroups tokens, to scores, and to pooling; moves positions with tokens.

    Raises:
        RewriteError: VR410 if the scores of an attention take no bias, or a clause has sizes weigh
            a pooling that is not known; VR450 or VR451 if positions cannot go with their tokens,
            VR452 if tokens are given back that nothing took.
    """
    made = stream.in_turn
    for step, before in zip(made, (None, *made), strict=False):
        if step.size is not None and before is not None and before.size is not None:
            with caused_at(step.clause.span):
                joined = bool(stream.known(step.position - 1).joined)
                _give(editor, before.size, step.size, joined)
    _follow(editor, anatomy, stream)
    scores = stream.counts("in_scores")
    if scores is not None and scores.value:
        _bias(editor, anatomy, stream)
    if made:
        weigh(editor, anatomy, stream)
    for _, size, _ in stream.sizes():
        HELD.drop(editor.node(size.place))
    finish(editor)


def _bias(editor: Editor, anatomy: Anatomy, stream: Stream) -> None:
    """Has the logarithms of sizes count in the scores of keys."""
    attending = [b for b in anatomy.blocks if b.attn and stream.known(2 * b.index).size]
    sizes = [stream.known(2 * b.index).size for b in attending]
    logs: dict[Value, Value] = {}
    for block, size in zip(attending, sizes, strict=True):
        cause = stream.cause(2 * block.index, "size")
        assert cause is not None
        assert size is not None
        if size not in logs:
            logs[size] = size.log().made(editor) if sizes.count(size) > 1 else size.log()
        with caused_at(cause.span):
            site = BlockSite(Context(editor, cause, anatomy, stream), block)
            site.attn.bias_keys(logs[size], cast=True)


def _follow(editor: Editor, anatomy: Anatomy, stream: Stream) -> None:
    """Has positions of patches go where these go, and gives patches back that were merged."""
    left, trail = stream.in_turn, Trail(editor, stream)
    for block in anatomy.blocks if left else ():
        while left and left[0].position <= 2 * block.index:
            trail = _next(editor, stream, trail, left.pop(0))
        if trail.steps and block.attn is not None:
            clause = trail.steps[-1].clause
            site = BlockSite(Context(editor, clause, anatomy, stream), block).attn
            with caused_at(clause.span):
                if has_positions(site):
                    why = f"'{site.role}' gives patches positions by where they stand"
                    move(site, trail.kept(why))
    for step in left:
        trail = _next(editor, stream, trail, step)


def _next(editor: Editor, stream: Stream, trail: Trail, step: Regrouping) -> Trail:
    """The trail behind a step; one that gives patches back is told where they are."""
    if step.size is not None:
        trail.steps.append(step)
        return trail
    clause, made = step.clause, step.made
    if not trail.steps:
        raise clause.error(
            "VR452",
            f"{clause.pass_name}: no clause in front of it makes the tokens fewer",
            suggestion="take it out, or put it behind what merges or prunes tokens",
        )
    with caused_at(clause.span):
        into = trail.into(f"{clause.pass_name} puts them back").read(editor, made.unit)
        assert isinstance(made.site, BoundSite)
        call = made.site.call_of(made)
        call.args = (*call.args, into)
    return Trail(editor, stream)


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
    call.args = (*call.args, completed(known, tokens, call) if joined else known)
