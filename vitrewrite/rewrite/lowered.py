"""The cheapest equal form of a rewritten model."""

from __future__ import annotations

from dataclasses import replace

from ..emission.realise import realise
from .lowering import lowered_tree
from .measures import measure
from .rewritten import Rewritten


def lowered(rewritten: Rewritten) -> Rewritten:
    """A model with everything folded that can be; `rewritten` stays in it as `unlowered`."""
    root, editor = lowered_tree(rewritten)
    result = replace(rewritten.result, root=root, editor=editor)
    measures = measure(result, rewritten.cost, lowered=True)
    return replace(
        rewritten, module=root, result=result, source=realise(root), measures=measures,
        lowered=True, unlowered=rewritten,
    )  # fmt: skip
