"""What claims can be about, and which make sense."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from vitrewrite.errors import SpecError
from vitrewrite.text import did_you_mean, listing, shown

from .conditions import Compare
from .expressions import Literal
from .model import STATED, Claim
from .types import check_type
from .values import is_number, show


class Metric(NamedTuple):
    """What a claim can be about."""

    sited: bool  # measured at a site: `tokens at blocks[7]`
    excluding: bool  # can leave out sites: `trainable <= 1M excluding head`


METRICS: Mapping[str, Metric] = {
    "params": Metric(False, True),
    "trainable": Metric(False, True),
    "macs": Metric(False, True),
    "macs_lowered": Metric(False, True),
    "flops": Metric(False, True),
    "tokens": Metric(True, False),
    "max_error": Metric(False, False),
}


def check_claim(claim: Claim) -> None:
    """Raises VR216 for an unknown metric, VR217 for a claim that makes no sense for its metric."""
    if claim.metric in STATED and claim.compare is None and claim.site is None:
        return
    metric = METRICS.get(claim.metric)
    if metric is None:
        notes = [f"metrics: {listing(METRICS)}", f"or: {listing(STATED.values())}"]
        suggestion = did_you_mean(claim.metric, [*METRICS, *STATED])
        message = f"no metric {shown(claim.metric)}"
        raise SpecError("VR216", message, span=claim.span, notes=notes, suggestion=suggestion)
    if problem := _claim_problem(claim, metric):
        message, suggestion = problem
        raise SpecError("VR217", message, span=claim.span, suggestion=suggestion)
    assert claim.compare is not None
    check_bound(claim.compare)


def _claim_problem(claim: Claim, metric: Metric) -> tuple[str, str] | None:
    name = claim.metric
    if metric.sited and claim.site is None:
        return f"{name} are counted at a site", f"write 'require {name} at blocks[7] == 99'"
    if claim.site is not None and not metric.sited:
        return f"{name} is not measured at a site", f"write 'require {name} <= ...'"
    if claim.compare is None:
        return "the claim has no comparison", f"write 'require {name} at SITE == 99'"
    if claim.excluding is not None and not metric.excluding:
        return f"{name} cannot exclude sites", "leave out 'excluding'"
    if claim.compare.sign == "!=":
        return "a claim with '!=' says almost nothing", "use <=, <, >=, >, == or within"
    return None


def check_bound(compare: Compare) -> None:
    """Raises VR204 unless a claim is compared with a number, VR203 for an odd tolerance."""
    if isinstance(compare.bound, Literal):
        check_type(compare.bound.value, "float", "the bound", compare.bound.span)
    if compare.tolerance is not None and isinstance(compare.tolerance, Literal):
        value, span = compare.tolerance.value, compare.tolerance.span
        check_type(value, "float", "the tolerance", span)
        if is_number(value) and not 0 <= value <= 1:
            message = f"tolerance {show(value)} is out of range: 0%..100%"
            suggestion = "the tolerance is relative, such as 'within 1% of 13.4G'"
            raise SpecError("VR203", message, span=span, suggestion=suggestion)
