"""The cheapest equal form of a rewritten model."""

from __future__ import annotations

from dataclasses import replace

from ..emission.realise import realise
from .lowering import lowered_tree
from .measures import measure
from .rewritten import Rewritten


def lowered(rewritten: Rewritten, stitch: int | None = None) -> Rewritten:
    """A model with everything folded that can be; `rewritten` stays in it as `unlowered`.

    Args:
        rewritten: the model.
        stitch: the one of several that is to be taken out of it: more folds if only that stays.
    """
    root, editor = lowered_tree(rewritten, stitch=stitch)
    there = rewritten.result.base_trained & {name for name, _ in root.named_parameters()}
    result = replace(rewritten.result, root=root, editor=editor, base_trained=there)
    measures = measure(result, rewritten.cost, lowered=True)
    return replace(
        rewritten,
        module=root,
        result=result,
        source=realise(root),
        measures=measures,
        lowered=True,
        unlowered=rewritten,
    )
