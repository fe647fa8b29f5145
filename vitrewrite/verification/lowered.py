"""What lowering changes, measured on random input: of every fold, every clause, and in all.

All figures are of the model as it is now, trained or not. Of a dtype there are: `max`, the largest
difference between the outputs of the lowered and of the unlowered model, both in that dtype;
`relative`, the same over the largest output; and `rounding`, for comparison, the largest difference
that the dtype itself makes to the unlowered model, against float64 and over the largest output.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..emission.realise import realise
from ..rewrite.lowering import in_turn, lowerable, lowered_tree
from ..rewrite.unlowering import changed
from ..tracing.unit import duplicate
from .numeric import sample, tensors

if TYPE_CHECKING:
    from ..editing.editor import Insertion
    from ..editing.folds import Fold
    from ..rewrite.rewritten import Rewritten

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CLAUSE_BY_CLAUSE = 20_000_000_000
"""MACs of a forward up to which clauses are measured one by one; ViT-B/16 is below."""
_ROWS = 8  # random input vectors of a layer

Outputs = list[torch.Tensor]


def measured(lowered: Rewritten) -> dict[str, Any]:
    """What `report.json` has under `lowering`.

    `error` of the whole model and `clauses` with theirs, in the order of lowering, each against the
    model before that clause was lowered; `folds` with the error of the layer's own output;
    `unmeasured` says why a dtype is missing; `changed` are tensors with new values.
    """
    unlowered = lowered.unlowered
    assert unlowered is not None
    stages = list(_stages(lowered))
    errors: dict[str, dict[str, Any]] = {}
    steps: list[dict[str, Any]] = [{} for _ in stages]
    unmeasured: dict[str, str] = {}
    exact = _outputs(unlowered.module, lowered, torch.float64)
    for dtype in _dtypes(lowered):
        name = str(dtype).removeprefix("torch.")
        first = _outputs(unlowered.module, lowered, dtype)
        if isinstance(first, str):
            unmeasured[name] = first
            continue
        now = first
        for (_, module), step in zip(stages, steps, strict=True):
            before, now = now, _lowered_outputs(module, lowered, dtype)
            step[name] = _error(before, now)
        errors[name] = _error(first, now, exact)
    found = {
        clauses[0]: step
        for (clauses, _), step in zip(stages, steps, strict=True)
        if len(clauses) == 1
    }
    return {
        "error": errors,
        "unmeasured": unmeasured,
        "clauses": list(_clauses(lowered, found)),
        "folds": [_fold(fold, lowered) for fold in lowered.result.editor.folds],
        "changed": changed(lowered),
    }


def _stages(lowered: Rewritten) -> Iterator[tuple[tuple[int, ...], nn.Module]]:
    """Models with one more clause lowered each time, or at once where that takes long."""
    unlowered = lowered.unlowered
    assert unlowered is not None
    clauses = lowerable(unlowered)
    if unlowered.measures.macs > CLAUSE_BY_CLAUSE:
        yield clauses, lowered.module
        return
    for count in range(1, len(clauses)):
        root, _ = lowered_tree(unlowered, clauses[:count])
        realise(root)
        yield clauses[count - 1 : count], root
    yield clauses[-1:] or (), lowered.module


def _clauses(lowered: Rewritten, found: dict[int, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    unlowered = lowered.unlowered
    assert unlowered is not None
    before, after = (r.result.editor.insertions for r in (unlowered, lowered))
    steps = {s.clause.number: s for s in lowered.result.steps}
    for clause in dict.fromkeys(i.clause for i in in_turn(before)):
        described = steps[clause].clause
        yield {
            "clause": described.text,
            "line": described.span.line if described.span else None,
            "pass": described.pass_name,
            "modules": {"before": _count(before, clause), "after": _count(after, clause)},
            "error": found.get(clause, {}),
        }


def _count(insertions: list[Insertion], clause: int) -> int:
    return sum(i.clause == clause for i in insertions)


def _fold(fold: Fold, lowered: Rewritten) -> dict[str, Any]:
    """The layer with its branch and the layer that has it folded in, on random vectors."""
    clause = fold.insertion.site.clause
    about: dict[str, Any] = {
        "site": fold.insertion.site.role, "weights": list(fold.names), "clause": clause.text,
        "pass": clause.pass_name,
    }  # fmt: skip
    return {**about, "error": dict(_layer_errors(fold, _dtypes(lowered)))}


@torch.no_grad()
def _layer_errors(fold: Fold, dtypes: tuple[torch.dtype, ...]) -> Iterator[tuple[str, Any]]:
    weight = next(fold.before.parameters())
    if weight.is_meta:
        return
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((_ROWS, weight.shape[-1]), generator=generator).to(weight.device)

    def unfolded(dtype: torch.dtype) -> Outputs | str:
        layer, branch = (_cast(m, dtype) for m in (fold.before, fold.insertion.module))
        return _tried(lambda: fold.unfolded(layer, branch, x.to(dtype)))

    exact = unfolded(torch.float64)
    for dtype in dtypes:
        first = unfolded(dtype)
        if not isinstance(first, str):
            now = tensors(_cast(fold.after, dtype)(x.to(dtype)), torch.float64)
            yield str(dtype).removeprefix("torch."), _error(first, now, exact)


# -- one forward ----------------------------------------------------------------------------------


def _dtypes(lowered: Rewritten) -> tuple[torch.dtype, ...]:
    """Those of every report, and that of the model."""
    own = {p.dtype for p in lowered.module.parameters() if p.is_floating_point()}
    return (*DTYPES, *sorted(own.difference(DTYPES), key=str))


@torch.no_grad()
def _outputs(module: nn.Module, lowered: Rewritten, dtype: torch.dtype) -> Outputs | str:
    """The outputs in float64, or why there are none in this dtype."""
    weights = [*module.parameters(), *module.buffers()]
    if any(t.is_meta for t in weights):
        return "the model has no weights"
    return _tried(lambda: _forward(module, lowered, dtype))


@torch.no_grad()
def _lowered_outputs(module: nn.Module, lowered: Rewritten, dtype: torch.dtype) -> Outputs:
    """Of a model that is as good as one that runs in this dtype: what fails is a bug."""
    return tensors(_forward(module, lowered, dtype), torch.float64)


def _forward(module: nn.Module, lowered: Rewritten, dtype: torch.dtype) -> Any:
    device = next(module.parameters()).device
    inputs = (x.to(device) for x in sample(lowered, batch=1))
    cast = (x.to(dtype) if x.is_floating_point() else x for x in inputs)
    return _cast(module, dtype)(*cast)


def _tried(run: Any) -> Outputs | str:
    try:
        outputs = tensors(run(), torch.float64)
    except (RuntimeError, TypeError) as error:  # an operation that the device lacks in the dtype
        return str(error).strip().partition("\n")[0]
    if not all(bool(t.isfinite().all()) for t in outputs):
        return "the outputs of the unlowered model are not finite"
    return outputs


def _cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy in another dtype, in eval mode."""

    def tensor(old: torch.Tensor) -> torch.Tensor:
        return old.detach().to(dtype) if old.is_floating_point() else old.detach().clone()

    return duplicate(module, lambda p: nn.Parameter(tensor(p), requires_grad=False), tensor).eval()


def _error(first: Outputs, second: Outputs, exact: Outputs | str = "") -> dict[str, float | None]:
    """The differences between outputs; None for one that is not finite."""
    scale = max((float(t.abs().max()) for t in first), default=0.0) or 1.0
    largest = _largest(first, second)
    error = {"max": largest, "relative": largest / scale}
    if not isinstance(exact, str):
        error["rounding"] = _largest(first, exact) / scale
    return {k: v if math.isfinite(v) else None for k, v in error.items()}


def _largest(first: Outputs, second: Outputs) -> float:
    pairs = zip(first, second, strict=True)
    return max((float((a - b).abs().max()) for a, b in pairs), default=0.0)
