"""What `lower` prints: the errors of the whole model, clause by clause, and of the worst fold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..text import plural, table

if TYPE_CHECKING:
    from ..rewrite.rewritten import Rewritten

_WIDTH = 64  # characters of a clause


def lowering_text(lowered: Rewritten) -> str:
    """The cost before and after, and a table of relative errors by dtype."""
    found, keys = lowered.lowering["lowering"], lowered.lowering["keys"]
    unlowered = lowered.unlowered
    assert unlowered is not None
    dtypes = list(found["error"])
    rows = [("difference over the largest output", "modules", *dtypes)]
    for clause in found["clauses"]:
        modules = clause["modules"]
        number = f"{modules['before']} -> {modules['after']}"
        rows.append((_cut(clause["clause"]), number, *_cells(clause["error"], dtypes)))
    rows.append(("the whole model", "", *_cells(found["error"], dtypes)))
    rows.append(("what the dtype itself changes", "", *_cells(found["error"], dtypes, "rounding")))
    if found["folds"]:
        worst = _worst(found["folds"], dtypes)
        rows.append((f"the worst of {plural(len(found['folds']), 'folded layer')}", "", *worst))
    changed = f"{len(found['changed'])} changed, {len(keys)} gone or renamed"
    lines = [
        f"MACs      {unlowered.measures.macs:,} -> {lowered.measures.macs:,}",
        f"tensors   {changed}",
        "",
        *(table(rows) if dtypes else ()),
        *(f"not measured in {dtype}: {why}" for dtype, why in found["unmeasured"].items()),
        "",
    ]
    return "\n".join(lines)


def _cells(error: dict[str, Any], dtypes: list[str], kind: str = "relative") -> list[str]:
    return [_number(error[d].get(kind)) if d in error else "" for d in dtypes]


def _worst(folds: list[dict[str, Any]], dtypes: list[str]) -> list[str]:
    found = [[f["error"].get(d, {}).get("relative") for f in folds] for d in dtypes]
    return [
        _number(max(known)) if (known := [v for v in vs if v is not None]) else "" for vs in found
    ]


def _cut(text: str) -> str:
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 3]}..."


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.2g}"
