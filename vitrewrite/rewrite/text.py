"""Plans and reports as plain text, for terminals and `plan.md`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from ..sensitivity.text import summary
from ..text import giga, megabytes, plural, table

if TYPE_CHECKING:
    from ..editing.stream import Stated
    from ..sensitivity import Allocation
    from .claims import Verdict
    from .compilation import Compilation
    from .measures import Measures
    from .order import Order
    from .rewritten import Rewritten
    from .step import Step

_MARKS = {True: "ok", False: "FAILS", None: "open"}


def plan_text(plan: Compilation) -> str:
    """The plan: clauses with `+ ~ -`, counts, claims."""
    lines = [
        f"{plan.spec.name} on {plan.model}, weights {plan.weights}",
        "",
        *clause_lines(plan.steps),
        *map(str, plan.spec.absent),
        *order_lines(plan.orders),
        *map(str, plan.aims),
        *size_lines(plan.sizes),
        "",
        *allocation_lines(plan.allocations),
        *measure_lines(plan.measures),
        *checkpoint_lines(plan.checkpointing),
        *feature_lines(plan.features),
        *claim_lines(plan.claims),
        *(f"warning: {warning}" for warning in plan.warnings),
    ]
    return "\n".join(line.rstrip() for line in lines)


def rewritten_text(rewritten: Rewritten) -> str:
    """What a rewritten model is: its clauses, counts and claims."""
    state = ["lowered"] * rewritten.lowered + ["trained"] * rewritten.trained
    name = f"{rewritten.spec.name} on {rewritten.model_name}, weights {rewritten.weights}"
    lines = [
        ", ".join([name, *state]),
        "",
        *clause_lines(rewritten.result.steps),
        "",
        *measure_lines(rewritten.measures),
        *claim_lines(rewritten.claims),
    ]
    return "\n".join(line.rstrip() for line in lines)


def clause_lines(steps: Sequence[Step]) -> list[str]:
    """One line per clause: change, line number, text, sites, parameters."""
    rows = [
        (
            step.change,
            str(step.clause.span.line) if step.clause.span else "",
            step.clause.text,
            plural(len(step.sites), "site"),
            f"{step.parameters:,} parameters",
        )
        for step in steps
    ]
    return [*table(rows), *_waived(steps)] if rows else ["nothing to change"]


def _waived(steps: Iterable[Step]) -> Iterator[str]:
    """What clauses do not claim although their passes do."""
    for step in steps:
        for claim, sites in step.waived.items():
            first, why = next(iter(sites.items()))
            more = f" and {len(sites) - 1} more" if len(sites) > 1 else ""
            where = f"line {step.clause.span.line}, " if step.clause.span else ""
            yield f"not claimed: {claim} ({where}{first}{more}): {why}"


def checkpoint_lines(paths: Sequence[str]) -> list[str]:
    """What is computed again in backward, as the model itself does it."""
    if not paths:
        return []
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return [f"checkpoints  {paths[0]}{more}: computed again in backward, as in the model"]


def feature_lines(features: Mapping[str, int]) -> list[str]:
    """What `tune` keeps of an image, if it does."""
    if not features:
        return []
    size, macs = megabytes(features["bytes"]), giga(features["macs_spared"])
    return [f"features     {size} an image on disk; no step computes the {macs} MACs behind it"]


def order_lines(orders: Iterable[Order]) -> list[str]:
    """Where several clauses act on one value: which one is next to the model's own."""
    return [f"order  {order}" for order in orders]


def size_lines(sizes: Iterable[Stated]) -> list[str]:
    """Where it counts how many patches a token stands for, and who says so."""
    return [f"sizes of merged tokens {stated}" for stated in sizes]


def allocation_lines(allocations: Mapping[str, Allocation]) -> list[str]:
    """What each `sensitive(...)` bought, by block."""
    return [line for k, a in allocations.items() for line in (*summary(k, a.to_json()), "")]


def measure_lines(measures: Measures) -> list[str]:
    """Parameters, MACs and tokens."""
    params = measures.params
    share = 100 * params.trainable_without_head / max(params.total, 1)
    rows = [
        (
            "parameters",
            f"{params.total:,}",
            f"trainable {params.trainable:,}",
            f"without head {params.trainable_without_head:,} ({share:.2f} %)",
        ),
        (
            "MACs",
            giga(measures.macs),
            f"base {giga(measures.macs_base)}",
            f"lowered {giga(measures.macs_lowered)}",
        ),
    ]
    heading = rows[0][0]
    tokens = f"{'tokens':{len(heading)}}  {tokens_text(measures.tokens)}"
    stitches = measures.stitches.lines() if measures.stitches is not None else ()
    return [*table(rows), tokens, *stitches]


def claim_lines(claims: Sequence[Verdict]) -> list[str]:
    """One line per claim."""
    rows = [
        ("claim" if i == 0 else "", _MARKS[c.holds], c.claim, _measured(c.measured))
        for i, c in enumerate(claims)
    ]
    return table(rows)


def _measured(value: object) -> str:
    if value is None:
        return "measured by apply and verify"
    return f"measured {value:,}" if isinstance(value, int) else f"measured {value:.3g}"


def tokens_text(tokens: Sequence[int | None]) -> str:
    """`197 x 6, 99 x 7`: equal neighbours counted; `197, 189, 181` where there are none."""
    known = [t for t in tokens if t is not None]
    if not known:
        return "no token sequence"
    runs = [(count, len(list(run))) for count, run in groupby(known)]
    if len(runs) == 1:
        return f"{runs[0][0]} throughout"
    alone = all(length == 1 for _, length in runs)
    return ", ".join(f"{count}" if alone else f"{count} x {length}" for count, length in runs)
