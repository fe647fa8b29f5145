"""The claims of a spec (`require`), measured and judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import Span, VerifyError, caused_at
from ..language.model import Claim, Spec
from .counting import count
from .engine import Rewrite

if TYPE_CHECKING:
    from .measures import Measures

EXACT = 2e-5
"""Largest relative error of a lowering that is exact up to rounding, in float32."""

NUMERIC = ("identity", "lowers", "max_error")
"""Claims that need weights: `plan` leaves them open, `apply` and `verify` judge them."""


@dataclass(frozen=True)
class Verdict:
    """A claim, what was measured, and whether it holds (None: not measured yet)."""

    claim: str
    measured: Any
    holds: bool | None
    span: Span | None = None

    def to_json(self) -> dict[str, Any]:
        """The verdict as data."""
        return {"claim": self.claim, "measured": self.measured, "holds": self.holds}

    def error(self) -> VerifyError:
        """The failed claim as an error."""
        shown = f"{self.measured:,}" if isinstance(self.measured, int) else str(self.measured)
        return VerifyError(
            "VR501",
            f"the claim '{self.claim}' does not hold: measured {shown}",
            span=self.span,
            measured=self.measured,
        )


def judge(
    spec: Spec, measures: Measures, result: Rewrite, numeric: Callable[[str], Any] | None = None
) -> tuple[Verdict, ...]:
    """Judges every `require` of the spec.

    Args:
        spec: whose claims.
        measures: the counts of the rewritten model.
        result: the rewritten tree.
        numeric: measures `identity`, `lowers` (max errors or None) and `max_error`; without it
            these claims stay open.
    """
    out = []
    for require in spec.requires:
        claim = require.claim
        if claim.metric in NUMERIC:
            measured = numeric(claim.metric) if numeric else None
            holds = None if measured is None else _holds_numeric(claim, measured)
        else:
            with caused_at(require.span):
                measured = count(claim, measures, result)
            holds = claim.holds(measured)
        out.append(Verdict(str(claim), measured, holds, require.span))
    return tuple(out)


def _holds_numeric(claim: Claim, measured: Any) -> bool:
    if claim.metric == "identity":
        return bool(measured == 0)
    return bool(measured <= EXACT) if claim.metric == "lowers" else claim.holds(measured)
