"""What claims can be about, and which make sense."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from vitrewrite.catalog.signatures import OptionInfo
from vitrewrite.errors import SpecError
from vitrewrite.text import did_you_mean, listing, shown

from .conditions import Compare
from .conventions import CONVENTIONS
from .expressions import Literal
from .model import STATED, Claim
from .types import check_type
from .values import is_number, show


class Metric(NamedTuple):
    """What a claim can be about."""

    sited: bool = False  # measured at a site: `tokens at blocks[7]`
    excluding: bool = False  # can leave out sites: `trainable <= 1M excluding head`
    options: Mapping[str, OptionInfo] = MappingProxyType({})


def _options(*infos: OptionInfo) -> Mapping[str, OptionInfo]:
    return {info.name: info for info in infos}


_CONVENTION = OptionInfo(
    "convention",
    "str",
    False,
    False,
    False,
    "plain",
    choices=tuple(CONVENTIONS),
    help="what is counted",
)
_HEAD = OptionInfo(
    "head",
    "float",
    False,
    True,
    False,
    None,
    minimum=0,
    help="classes that the head is counted for, such as the mean of several tasks",
)
_OF = OptionInfo(
    "of",
    "str",
    False,
    False,
    False,
    "base",
    choices=("base", "base_and_head", "all"),
    help="the base without its head, with the head, or with all that was added",
)
_TASKS = OptionInfo("tasks", "int", False, False, True, minimum=1, help="tasks that share the base")
_STITCHES = OptionInfo(
    "stitches",
    "str",
    False,
    True,
    False,
    None,
    choices=("least", "most"),
    help="of the stitch that costs least or most, where models are stitched",
)

METRICS: Mapping[str, Metric] = {
    "params": Metric(excluding=True, options=_options(_HEAD)),
    "params_lowered": Metric(),
    "trainable": Metric(excluding=True, options=_options(_HEAD)),
    # Trained parameters over those of a base, and what tasks store over one base, in bases: numbers
    # of quantised matrices as the bits that they are packed in.
    "share": Metric(options=_options(_OF, _HEAD)),
    "storage": Metric(options=_options(_TASKS, _HEAD)),
    "macs": Metric(excluding=True, options=_options(_CONVENTION, _STITCHES)),
    "macs_lowered": Metric(excluding=True, options=_options(_CONVENTION, _STITCHES)),
    "flops": Metric(excluding=True, options=_options(_CONVENTION, _STITCHES)),
    "tokens": Metric(sited=True),
    "max_error": Metric(),
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
