"""What hangs on the sizes of tokens: put in once all clauses have changed the tokens."""

from __future__ import annotations

from itertools import pairwise

from torch import fx

from ..anatomy.sites import Anatomy
from ..editing import attended
from ..editing.editor import Editor
from ..editing.stream import Stream
from ..editing.value import Value
from ..errors import caused_at
from ..tracing.notes import HELD
from .block import BlockSite
from .context import Context
from .pooling import completed, weigh


def settle(editor: Editor, anatomy: Anatomy, stream: Stream) -> None:
    """Gives sizes to what regroups tokens, to scores, and to pooling.

    Raises:
        RewriteError: VR410 if the scores of an attention take no bias, or a clause has sizes weigh
            a pooling that is not known.
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
        weigh(editor, anatomy, stream)
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
    call.args = (*call.args, completed(known, tokens, call) if joined else known)
