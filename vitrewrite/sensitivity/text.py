"""An allocation as text: what was bought where, and what changed from one to another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..text import table

_TITLES = (
    ("", "matrices", "", "vectors", "", ""),
    ("block", "adapted", "in part", "whole", "in part", "parameters"),
)
STACKS = ("pixel_decoder.layers", "decoder.layers")
_COLUMNS = ((True, "structured"), (True, "entries"), (False, "vector"), (False, "entries"))


def summary(call: str, allocation: Mapping[str, Any]) -> list[str]:
    """How many matrices and vectors of each block got what, and the total beside the target.

    Args:
        call: the selector.
        allocation: as `report.json` has it.
    """
    decisions = list(allocation["decisions"].values())
    counted = allocation.get("counted", allocation["total"])
    anyway = counted - sum(d["parameters"] for d in decisions)
    blocks: dict[Any, list[Any]] = {}
    for decision in decisions:
        blocks.setdefault(decision["block"], []).append(decision)
    rest = blocks.pop(None, [])
    rows = [_row(str(b), blocks[b]) for b in sorted(blocks, key=position)]
    rows += [_row("other", rest)] if rest else []
    return [
        f"{call}: {allocation['total']:,} of {allocation['budget']:,} parameters, from "
        f"{allocation['tau']:,} sensitive entries"
        + (f"; {anyway:,} of them trained anyway" if anyway else "")
        + _other_counts(allocation, counted),
        *(f"  {line}" for line in table([*_TITLES, *rows, _row("all", decisions, of=True)])),
    ]


def _other_counts(allocation: Mapping[str, Any], counted: int) -> str:
    """What the rule counts, and what the authors' code would train of it, where these differ."""
    total, released = allocation["total"], allocation.get("released", counted)
    rule = f"; the rule counts {counted:,}" if counted != total else ""
    return rule + (f"; the authors' code trains {released:,}" if released != counted else "")


def position(block: int | str | None) -> tuple[int, int]:
    """Orders blocks, then layers of decoders, given by their roles, then what belongs to none."""
    if block is None:
        return len(STACKS) + 1, 0
    if isinstance(block, int):
        return 0, block
    stack, _, number = block.rstrip("]").partition("[")
    return STACKS.index(stack) + 1, int(number)


def _row(name: str, decisions: list[Any], *, of: bool = False) -> tuple[str, ...]:
    """Counts of what was decided; with `of`, the number of candidates beside them."""
    cells = []
    for matrices, kind in _COLUMNS:
        found = [d for d in decisions if (len(d["shape"]) > 1) == matrices]
        count = sum(d["kind"] == kind for d in found)
        cells.append(f"{count} of {len(found)}" if of else str(count))
    return (name, *cells, f"{sum(d['parameters'] for d in decisions):,}")


def changes(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[str]:
    """A line about every allocation and every decision that differs.

    Allocations are compared in the order of their specs.

    Args:
        first: allocations by selector, as `lock.json` has them with entries or a report without.
        second: those to compare with.
    """
    for (call, old), (other, new) in zip(first.items(), second.items(), strict=False):
        if old == new:
            continue
        yield f"{call}{'' if call == other else f' -> {other}'}:"
        for key in ("budget", "tau", "total"):
            if old[key] != new[key]:
                yield f"  {key}: {old[key]:,} -> {new[key]:,}"
        names = dict.fromkeys((*old["decisions"], *new["decisions"]))
        for name in names:
            before, after = (a["decisions"].get(name) for a in (old, new))
            if text := _changed(before, after):
                yield f"  {name}: {text}"


def _changed(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> str:
    """What became of a decision; nothing if it is the same."""
    shown = [_shown(decision) for decision in (before, after)]
    if shown[0] != shown[1]:
        return " -> ".join(shown)
    old, new = (set((d or {}).get("entries", ())) for d in (before, after))
    return f"{len(new - old)} of {len(new)} entries are others" if old != new else ""


def _shown(decision: Mapping[str, Any] | None) -> str:
    if decision is None:
        return "no candidate"
    kind = str(decision["kind"])
    return kind if kind == "nothing" else f"{kind} ({decision['parameters']:,})"
