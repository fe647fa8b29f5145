"""The claims of a spec (`require`), measured and judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import Span, VerifyError, caused_at
from ..language.model import Claim, Spec
from ..selection.select import Selection
from .engine import Rewrite
from .parameters import parameters_of

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
            "VR501", f"the claim '{self.claim}' does not hold: measured {shown}", span=self.span
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
                measured = _count(claim, measures, result)
            holds = claim.holds(measured)
        out.append(Verdict(str(claim), measured, holds, require.span))
    return tuple(out)


def _holds_numeric(claim: Claim, measured: Any) -> bool:
    if claim.metric == "identity":
        return bool(measured == 0)
    return bool(measured <= EXACT) if claim.metric == "lowers" else claim.holds(measured)


def _count(claim: Claim, measures: Measures, result: Rewrite) -> int:
    if claim.metric in ("params", "trainable"):
        total = measures.params.total if claim.metric == "params" else measures.params.trainable
        return total - _excluded(claim, result)
    if claim.metric == "tokens":
        return _tokens(claim, measures, result)
    if claim.metric == "macs_lowered":
        return measures.macs_lowered
    return measures.macs * (2 if claim.metric == "flops" else 1)


def _excluded(claim: Claim, result: Rewrite) -> int:
    if claim.excluding is None:
        return 0
    sites = Selection(result.anatomy, result.root).sites(claim.excluding)
    names = parameters_of(sites, result.root)
    return sum(
        p.numel()
        for n, p in result.root.named_parameters()
        if n in names and (p.requires_grad or claim.metric == "params")
    )


def _tokens(claim: Claim, measures: Measures, result: Rewrite) -> int:
    assert claim.site is not None
    sites = Selection(result.anatomy, result.root).sites(claim.site)
    order = {block.index: place for place, block in enumerate(result.anatomy.blocks)}
    places = [order.get(index := getattr(site, "index", 0), index) for site in sites]
    found = {measures.tokens[place] for place in places}
    if len(found) != 1 or None in found:
        raise VerifyError(
            "VR502", f"'{claim.site}' has no single token count: {sorted(map(str, found))}",
            span=claim.site.span,
        )  # fmt: skip
    return found.pop() or 0
