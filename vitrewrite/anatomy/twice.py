"""Models whose layers two streams pass: what an earlier rewrite put beside the tokens."""

from __future__ import annotations

from torch import nn

from ..tracing.leaves import is_inserted
from ..tracing.unit import Unit
from .sites import Anatomy, Place


def rows_beside(anatomy: Anatomy, root: nn.Module) -> tuple[str, str] | None:
    """The pass whose rows go through layers of the tokens, and the module that both pass.

    Rows that a pass, such as `synqt` or `vqt`, takes through a block beside its tokens pass its
    layers a second time. Read anew, that is a second block of the same layers, and neither of them
    is what clauses call a block.
    """
    for block in anatomy.blocks:
        name = _made_by(block.input, root)
        others = (b.path for b in anatomy.blocks if b is not block)
        if name and any(_within(p, block.path) or _within(block.path, p) for p in others):
            return name, block.input.unit
    return None


def _made_by(place: Place, root: nn.Module) -> str:
    """The pass whose module yields a value, or nothing."""
    try:
        unit = root.get_submodule(place.unit)
    except AttributeError:  # a block that a clause took out
        return ""
    graph = unit.template.graph if isinstance(unit, Unit) and unit.template else None
    node = next((n for n in graph.nodes if n.name == place.node), None) if graph else None
    if node is None or node.op != "call_module":
        return ""
    module = unit.get_submodule(str(node.target))
    return str(module.inserted_by) if is_inserted(module) else ""


def _within(path: str, other: str) -> bool:
    return path == other or path.startswith(f"{other}.")
