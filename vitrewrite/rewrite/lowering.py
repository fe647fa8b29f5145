"""The cheapest equal model: what passes put in, folded into what was there."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..catalog.declare import Pass
from ..catalog.own_code import own_code
from ..editing import wiring
from ..editing.branches import is_ahead, is_behind
from ..editing.editor import Editor, Insertion
from ..editing.fitting import modes_kept
from ..editing.folds import Lowered
from ..editing.sweeping import sweep
from ..sites import BoundSite, finish
from ..tracing.paths import STITCHES
from ..tracing.unit import duplicate
from .passes import Methods

if TYPE_CHECKING:
    from .rewritten import Rewritten


@torch.no_grad()
def lower_tree(
    root: nn.Module,
    original: Editor,
    methods: Methods,
    only: Collection[int] | None = None,
    stitch: int | None = None,
) -> Editor:
    """Lowers what can be lowered, in the order of `in_turn`, in place.

    Args:
        root: a tree of its own: weights are replaced, never changed.
        original: the editor of the tree that `root` is a copy of.
        methods: the pass of each clause.
        only: the clauses to lower; all by default.
        stitch: the one of several that stays, if it is to be taken out.

    Returns:
        The editor of `root`, with the insertions that stay.
    """
    editor = original.on(root)
    if stitch is not None and editor.stitches is not None:
        editor.stitches = replace(editor.stitches, taken=stitch)
    with modes_kept(root):
        root.eval()
        sweep(editor)  # what modules yield only so that they share a class is read by nobody
        for insertion in in_turn(editor.insertions):
            there = insertion in editor.insertions  # or in a part of the model that went
            if there and (only is None or insertion.clause in only):
                _lower(editor, insertion, methods.of(insertion))
        finish(editor)
        sweep(editor)
        _remove_uncalled(editor)
    return editor


def in_turn(insertions: Sequence[Insertion]) -> list[Insertion]:
    """The order in which insertions are lowered: the last one first.

    Those that fold are the other way round: a layer takes the nearest one before the next, all
    that is beside it, which adds to its weight, before what is in front of it, which the weight as
    it is then is multiplied with, and that before what is behind it.
    """
    folding = iter(sorted((i for i in insertions if i.folds), key=_turn))
    return [next(folding) if i.folds else i for i in reversed(insertions)]


def _turn(insertion: Insertion) -> int:
    """When a module that folds is lowered: 0 beside a layer, 1 in front of it, 2 behind it."""
    return 1 if is_ahead(insertion.module) else 2 * is_behind(insertion.module)


def _lower(editor: Editor, insertion: Insertion, method: Pass) -> None:
    folds, made = len(editor.folds), len(editor.insertions)
    site = _reattached(editor, insertion)
    with own_code(type(method), insertion.pass_name, f"lower() at '{site.role}'", site.clause.span):
        gone = method.lower(site, insertion.module)
    became = Lowered(insertion, tuple(editor.folds[folds:]), tuple(editor.insertions[made:]))
    editor.lowered.append(became)
    if gone and insertion in editor.insertions:
        editor.insertions.remove(insertion)


def _reattached(editor: Editor, insertion: Insertion) -> BoundSite:
    """The site of an insertion, on the tree that is lowered."""
    site = insertion.site
    assert isinstance(site, BoundSite)
    return site.at_lowering(editor, insertion)


def _remove_uncalled(editor: Editor) -> None:
    """Modules of passes that no graph calls any more go."""
    for insertion in list(editor.insertions):
        unit = editor.unit(insertion.unit)
        assert unit.template is not None
        target = insertion.path[len(insertion.unit) + 1 :] if insertion.unit else insertion.path
        on_path = editor.stitches is not None and insertion.path.startswith(f"{STITCHES}.")
        if not on_path and not any(n.target == target for n in unit.template.graph.nodes):
            editor.insertions.remove(insertion)
            _reattached(editor, insertion).remove(insertion)
    for path in list(editor.helpers):
        if next(wiring.calls(editor, path), None) is None:
            editor.without_helper(path)


def lowered_tree(
    rewritten: Rewritten, only: Collection[int] | None = None, stitch: int | None = None
) -> tuple[nn.Module, Editor]:
    """A lowered copy of a rewritten model, that shares the frozen weights, and its editor."""

    def own(parameter: nn.Parameter) -> nn.Parameter:
        value = parameter.detach()
        if parameter.requires_grad:  # may be trained on: not what it was lowered from
            value = value.clone()
        return nn.Parameter(value, requires_grad=parameter.requires_grad)

    root = duplicate(rewritten.module, own, lambda b: b.clone())
    return root, lower_tree(root, rewritten.result.editor, rewritten.result.methods, only, stitch)


def lowerable(rewritten: Rewritten) -> tuple[int, ...]:
    """The clauses that lowering can do something about, in the order in which it does."""
    clauses = dict.fromkeys(i.clause for i in in_turn(rewritten.result.editor.insertions))
    methods = rewritten.result.methods
    return tuple(c for c in clauses if type(methods[c]).lower is not Pass.lower)
