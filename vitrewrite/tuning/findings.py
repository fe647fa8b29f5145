"""What a search found, in words and numbers for a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..anatomy.sites import Mlp
from ..editing.editor import Insertion
from ..rewrite.rewritten import Rewritten


def findings(before: Rewritten, after: Rewritten) -> dict[str, Any]:
    """By site what is there, and parameters where each pass stands and in all the rest.

    Args:
        before: the model that was searched.
        after: the one that was found.
    """
    found = after.result.found
    places = _places(before)
    counts = [_counted(root, places) for root in (before.base, after.module)]
    return {
        "sites": {r: _said(o) for each in found.values() for r, o in each.options.items()},
        "parameters": {
            name: {"before": counts[0][name], "after": counts[1][name]} for name in counts[0]
        },
    }


def _said(options: Mapping[str, Any]) -> Any:
    """The state of a site: one word or number, or how many units it keeps."""
    values = [len(v) if isinstance(v, (list, tuple)) else v for v in options.values()]
    return values[0] if len(values) == 1 else dict(zip(options, values, strict=True))


def _places(rewritten: Rewritten) -> dict[str, str]:
    """Where passes stand that have prices: the start of names of parameters, and which pass."""
    known = {}
    for block in rewritten.result.anatomy.blocks:
        if block.attn is not None:
            known[block.attn.role] = block.attn.path
        if block.mlp is not None:
            known[block.mlp.role] = _path(block.mlp)
    return {
        f"{known.get(insertion.site.role, insertion.owners[0])}.": insertion.pass_name
        for insertion in rewritten.result.editor.insertions
        if _searched(rewritten, insertion)
    }


def _searched(rewritten: Rewritten, insertion: Insertion) -> bool:
    return hasattr(rewritten.module.get_submodule(insertion.path), "priced")


def _path(mlp: Mlp) -> str:
    """The module that holds its layers."""
    layer = mlp.fc2 or mlp.fc1
    return layer.path.rpartition(".")[0] if layer else ""


def _counted(root: nn.Module, places: Mapping[str, str]) -> dict[str, int]:
    """Parameters by pass, and the rest."""
    counts = dict.fromkeys((*places.values(), "rest"), 0)
    for name, parameter in root.named_parameters():
        inside = next((p for p in places if name.startswith(p)), None)
        counts["rest" if inside is None else places[inside]] += parameter.numel()
    return counts
