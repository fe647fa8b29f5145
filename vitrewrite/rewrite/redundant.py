"""What a clause adds to a parameter that the spec trains itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..editing.folds import Fold
from ..text import listing

if TYPE_CHECKING:
    from .engine import Rewrite


def tell_redundant(result: Rewrite, folds: Sequence[Fold]) -> None:
    """Warns of each clause that folds into parameters which are trained anyway.

    It can reach nothing that they cannot reach alone.

    Args:
        result: the rewritten model; its editor gets the warnings.
        folds: what lowering puts into which parameters.
    """
    found: dict[str, dict[str, None]] = {}
    for fold in folds:
        trained = [name for name in fold.moved if name in result.base_trained]
        if trained:
            names = found.setdefault(fold.insertion.site.clause.origin, {})
            names.update(dict.fromkeys(trained))
    for origin, names in found.items():
        result.editor.warnings.append(
            f"{origin}: redundant where the spec trains what it folds into: {listing(names, 3)}"
        )
