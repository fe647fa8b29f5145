"""The cheapest equal model: what passes put in, folded into what was there."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..declare import Pass
from . import wiring
from .editor import Editor


@torch.no_grad()
def lower_tree(root: nn.Module, original: Editor, methods: Mapping[int, Pass]) -> Editor:
    """Lowers what can be lowered, last insertion first, in place.

    Args:
        root: a tree of its own: weights are replaced, never changed.
        original: the editor of the tree that `root` is a copy of.
        methods: the pass of each clause.

    Returns:
        The editor of `root`, with the insertions that stay.
    """
    root.eval()
    editor = original.on(root)
    for insertion in reversed(list(editor.insertions)):
        site = insertion.site.at_lowering(editor, insertion)
        if methods[insertion.clause].lower(site, insertion.module):
            editor.insertions.remove(insertion)
    wiring.prune(editor)
    editor.clean()
    _remove_uncalled(editor)
    return editor


def _remove_uncalled(editor: Editor) -> None:
    """Modules of passes that no graph calls any more go."""
    for insertion in list(editor.insertions):
        unit = editor.unit(insertion.unit)
        assert unit.template is not None
        target = insertion.path[len(insertion.unit) + 1 :] if insertion.unit else insertion.path
        if not any(n.target == target for n in unit.template.graph.nodes):
            editor.insertions.remove(insertion)
            insertion.site.at_lowering(editor, insertion).remove(insertion)
