"""What only running a model can say: claims about its numbers, and the errors of lowering."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..editing.fitting import modes_kept
from ..errors import raise_all
from ..rewrite.claims import judge
from ..rewrite.rewritten import Rewritten
from .lowered import measured
from .numeric import at_start, measure_claim


def judged(rewritten: Rewritten, numeric: Callable[[str], Any] | None = None) -> Rewritten:
    """The model, in place, with all claims of its spec judged as it starts.

    Args:
        rewritten: the model.
        numeric: what measures its claims about numbers, if their runs are shared with other checks.

    Those of a lowered model are those of what it was lowered from; where that is not known, what
    takes weights stays open.

    Raises:
        VerifyError: VR501 for every claim that does not hold, together.
    """
    if rewritten.lowered:
        if rewritten.unlowered is not None:
            rewritten.claims = judged(rewritten.unlowered).claims
        return rewritten
    first = functools.cache(lambda: at_start(rewritten))  # only some claims take a run
    with modes_kept(rewritten.module, rewritten.base):
        rewritten.claims = judge(
            rewritten.spec,
            rewritten.measures,
            rewritten.result,
            numeric=numeric or (lambda metric: measure_claim(first(), metric)),
        )
    raise_all([v.error() for v in rewritten.claims if v.holds is False])
    return rewritten


def with_errors(lowered: Rewritten) -> Rewritten:
    """A lowered model whose report measures, when asked for, what lowering changed."""
    return replace(lowered, errors=measured)
