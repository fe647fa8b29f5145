"""Gates of structure in a lock file: a lowered model has the shape that they gave it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .lock import Folder

if TYPE_CHECKING:
    from ..rewrite.rewritten import Rewritten

_KEY = "opened"


def opened(rewritten: Rewritten) -> dict[str, Any]:
    """Of a lowered model, by module that was lowered, which of its gates were open; if any were."""
    before = rewritten.unlowered
    if before is None:
        return {}
    found = {}
    for insertion in before.result.editor.insertions:
        module: Any = before.module.get_submodule(insertion.path)
        if hasattr(module, "priced"):
            found[insertion.path] = (module.logits > 0).nonzero().flatten().tolist()
    return {_KEY: found} if found else {}


@torch.no_grad()
def open_as(folder: Folder, rewritten: Rewritten) -> None:
    """Opens and closes gates as those were that a lowered folder was made with."""
    for path, numbers in folder.lock.get(_KEY, {}).items():
        module: Any = rewritten.module.get_submodule(path)
        module.logits.fill_(-1.0)
        module.logits[numbers] = 1.0
