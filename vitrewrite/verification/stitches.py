"""Stitches: the method over the table, against models that are taken out of the same tree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ..editing.extracting import extracted
from ..rewrite.rewritten import Rewritten
from .check import Check
from .numeric import sample

_MOST = 12
"""So many stitches are run, evenly spread: each takes a forward or two."""


@torch.no_grad()
def stitches(rewritten: Rewritten) -> Iterator[Check]:
    """Whether a stitch of the model is what its pieces are by themselves, one after the other."""
    space = rewritten.measures.stitches
    if space is None:
        return
    module: Any = rewritten.module.eval()
    (images,) = sample(rewritten, 2)
    count = len(space.stitches)
    numbers = sorted({round(i * (count - 1) / (_MOST - 1)) for i in range(_MOST)})
    worst, where = 0.0, 0
    for number in numbers:
        found = module.stitch(images, number)
        wanted = extracted(module, number)(images)
        apart = float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))
        if not apart <= worst:
            worst, where = apart, number
    note = f"{len(numbers)} of {count}" if worst == 0 else f"stitch {where}"
    yield Check("a stitch = the model that it is taken out as", worst <= 1e-5, worst, note)
