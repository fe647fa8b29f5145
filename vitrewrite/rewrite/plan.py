"""What a spec would change, before any weight is touched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..anatomy.sites import Anatomy
from ..language.model import Spec
from ..tracing.unit import duplicate, on_meta
from .claims import Verdict
from .engine import Rewrite, Step
from .lowering import lower_tree
from .measure import Parameters, Propagation, count_parameters


@dataclass(frozen=True)
class Measures:
    """What a rewritten model costs; `macs` per image."""

    params: Parameters
    macs: int
    macs_lowered: int
    macs_base: int
    tokens: tuple[int | None, ...]  # entering each block, then leaving the last one

    def to_json(self) -> dict[str, Any]:
        """The keys that `report.json` promises."""
        return {
            "params": {
                "total": self.params.total,
                "trainable": self.params.trainable,
                "trainable_without_head": self.params.trainable_without_head,
            },
            "macs": self.macs,
            "macs_lowered": self.macs_lowered,
            "macs_base": self.macs_base,
            "flops": 2 * self.macs,
            "tokens": list(self.tokens),
        }


@dataclass(frozen=True)
class Plan:
    """What would change, clause by clause, and what it would cost."""

    spec: Spec
    model: str
    weights: str
    anatomy: Anatomy
    steps: tuple[Step, ...]
    measures: Measures
    claims: tuple[Verdict, ...]
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The plan as data."""
        return {
            "spec": self.spec.name,
            "model": self.model,
            "weights": self.weights,
            "clauses": [step_json(step) for step in self.steps],
            **self.measures.to_json(),
            "claims": [verdict.to_json() for verdict in self.claims],
            "warnings": list(self.warnings),
        }

    def __str__(self) -> str:
        from ..report.text import plan_text

        return plan_text(self)


def step_json(step: Step) -> dict[str, Any]:
    """A step as data."""
    span = step.clause.span
    return {
        "clause": step.clause.text,
        "line": span.line if span else None,
        "change": step.change,
        "sites": list(step.sites),
        "parameters": step.parameters,
    }


def measure(rewritten: Rewrite, base: Propagation) -> Measures:
    """Counts of a rewritten tree, and of what it lowers to."""
    root = rewritten.root
    meta = on_meta(root)
    run = Propagation(meta, rewritten.example, base)
    lowered = base.macs
    if rewritten.editor.insertions:
        twin = duplicate(meta, lambda p: p, lambda b: b)
        lower_tree(twin, rewritten.editor.insertions, rewritten.methods)
        lowered = Propagation(twin, rewritten.example, base).macs
    blocks = rewritten.anatomy.blocks
    places = [b.input for b in blocks] + [b.output for b in blocks[-1:]]
    tokens = tuple(_tokens(run.shape(p), rewritten.anatomy.stream.layout) for p in places)
    params = count_parameters(root, rewritten.head)
    return Measures(params, run.macs, lowered, base.macs, tokens)


def _tokens(shape: Sequence[int] | None, layout: str) -> int | None:
    """Positions of the stream: N of (B, N, C), H*W of an image."""
    if shape is None or len(shape) < 3:
        return None
    if len(shape) == 3:
        return shape[1]
    return shape[2] * shape[3] if layout == "nchw" else shape[1] * shape[2]
