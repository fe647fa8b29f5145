"""What hangs on the sizes of tokens: put in once all clauses have changed the tokens."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import fx

from ..anatomy.sites import Anatomy
from ..editing.editor import Editor, after
from ..editing.stream import Stream
from ..editing.value import Value
from ..errors import caused_at
from .block import BlockSite
from .context import Context


def settle(editor: Editor, anatomy: Anatomy, stream: Stream) -> None:
    """Gives sizes to what regroups tokens, and to scores.

    Raises:
        RewriteError: VR410 if the scores of an attention take no bias.
    """
    made = stream.sizes()
    for (_, before, _), (position, size, clause) in pairwise(made):
        with caused_at(clause.span):
            _give(editor, before, size, stream.known(position - 1).joined)
    scores = stream.counts("in_scores")
    for block in anatomy.blocks if scores is not None and scores.value else ():
        position = 2 * block.index
        known, cause = stream.known(position).size, stream.cause(position, "size")
        if known is not None and cause is not None and block.attn is not None:
            with caused_at(cause.span):
                site = BlockSite(Context(editor, cause, anatomy, stream), block)
                site.attn.bias_keys(known.log())
    for _, size, _ in made:
        del editor.node(size.place).meta["held"]
    editor.clean()


def _give(editor: Editor, before: Value, size: Value, joined: int) -> None:
    """What makes `size` is called with the sizes before as its last argument."""
    place = editor.where(size.place)
    call = editor.node(place).args[0]
    assert isinstance(call, fx.Node)
    call.args = (*call.args, _with_joined(before.read(editor, place.unit), joined))


def _with_joined(size: fx.Node, joined: int) -> fx.Node:
    """Tokens that joined the prefix stand for themselves."""
    if not joined:
        return size
    with after(size.graph, [size]):
        return size.graph.call_function(F.pad, (size, (joined, 0)), {"value": 1.0})
