"""Initial values of what passes put in."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import torch

from ..data.seeding import mixed
from ..editing.fitting import initialise
from ..errors import caused_at

if TYPE_CHECKING:
    from .engine import Rewrite


def draw(result: Rewrite, seed: int) -> None:
    """Draws them, from a generator per site: the same spec gives the same bits.

    A generator hangs on the seed, the pass and the site alone, so that another clause or another
    order of the clauses changes nobody's values. What several sites share is drawn for its owner.
    """
    seen: Counter[tuple[str, str]] = Counter()
    for insertion in result.editor.insertions:
        name = insertion.pass_name, insertion.key
        generator = torch.Generator().manual_seed(mixed(seed, *name, seen[name]))
        seen[name] += 1
        with caused_at(result.spec.clauses[insertion.clause].span):
            initialise(result.methods.of(insertion), insertion.module, generator)
