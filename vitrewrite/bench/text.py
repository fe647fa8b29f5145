"""The result of a benchmark as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..report.chart import KINDS
from ..report.memory import described, memory_lines
from ..text import giga, plural
from ..text import table as columns

TRAINING = (
    "training step: forward in training mode, mean of output x fixed random probe, backward; no "
    "optimiser.\nThe base trains its head only, with everything else frozen; full fine-tuning "
    "costs more."
)
PEAK = {
    "cpu": (
        "peak: the most that torch's allocator held above weights and inputs; without the scratch "
        "memory of oneDNN and MKL."
    ),
    "other": "peak: the most that torch's caching allocator held above weights and inputs.",
}
SAVED = "saved: what autograd keeps for backward, each storage once, without parameters and inputs."
PROFILING = (
    "profiling: squared gradients of every matrix and vector that an allocation decides on, whose "
    "float32\ncopy is {copy} MiB. Base: forward, cross-entropy, backward of all parameters."
)
TUNING = (
    "tuning: whole runs on digits without their start and end. Base is a plain loop of PyTorch with"
    "\nthe same images in memory, steps, evaluations and checkpoints."
)
BY_BLOCK = (
    "block: with what the spec does in this one, and outside of blocks; all: with all of it; none: "
    "without\nwhat it does in blocks."
)
RATIO = "time / base: median of the ratios within a round, smallest to largest in brackets."
COMPILE = "compile: the first step of a compiled model without caches; no part of the times."


def table(result: Mapping[str, Any]) -> str:
    """Settings, one table per measurement, and what its columns mean."""
    parts = [_head(result)]
    for kind, title in KINDS.items():
        if result[kind]:
            parts.append("\n".join([title, *_aligned(list(_rows(result[kind])))]))
    parts.append("\n".join(_notes(result)))
    return "\n\n".join(parts)


def by_block(result: Mapping[str, Any]) -> str:
    """Settings, memory by block, and what the columns mean."""
    notes = [PEAK.get(result["device"], PEAK["other"]), SAVED, BY_BLOCK]
    lines = _aligned(memory_lines(result))
    return "\n\n".join([described(result), "\n".join(lines), "\n".join(notes)])


def _head(result: Mapping[str, Any]) -> str:
    return (
        f"{result['spec']} on {result['model']}: batch {result['batch']}, {result['dtype']}, "
        f"{plural(result['rounds'], 'interleaved round')}\n"
        f"{result['device']} ({result['device_name']}), {plural(result['threads'], 'thread')}, "
        f"torch {result['torch']}"
    )


def _rows(measured: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Cells, a heading first; columns that nothing fills are left out by `_aligned`."""
    yield ("model", "median ms", "quartiles", "min", "max", "time / base", "MACs / base", "MACs",
           "peak MiB", "above base MiB", "saved MiB", "trained", "compile s")  # fmt: skip
    for name, row in measured.items():
        yield (
            name,
            _number(row["median_ms"]),
            f"{_number(row['low_quartile_ms'])}-{_number(row['high_quartile_ms'])}",
            _number(row["min_ms"]),
            _number(row["max_ms"]),
            f"{row['ratio']:.3f} ({row['ratio_min']:.3f}-{row['ratio_max']:.3f})"
            if "ratio" in row else "",
            f"{row['macs_ratio']:.3f}" if "macs_ratio" in row else "",
            giga(row["macs"]) if "macs" in row else "",
            _mebibytes(row.get("peak_bytes")),
            _mebibytes(row.get("above_base_bytes")),
            _mebibytes(row.get("saved_bytes")),
            f"{row['trained']:,}" if "trained" in row else "",
            f"{row['compile_s']:.1f}" if row.get("compile_s") is not None else "",
        )  # fmt: skip


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Names to the left, numbers to the right."""
    kept = [column for column in zip(*rows, strict=True) if any(column[1:])]
    padded = [
        column if i == 0 else tuple(cell.rjust(max(map(len, column))) for cell in column)
        for i, column in enumerate(kept)
    ]
    return [f"  {line}" for line in columns(list(zip(*padded, strict=True)))]


def _notes(result: Mapping[str, Any]) -> Iterator[str]:
    yield RATIO
    yield PEAK.get(result["device"], PEAK["other"])
    if result["training"]:
        yield SAVED
        yield TRAINING
    if result["profiling"]:
        copy = _mebibytes(result["profiling"]["base"]["copy_bytes"])
        yield PROFILING.format(copy=copy)
    if result["tuning"]:
        yield TUNING
    if any(name.endswith("compiled") for name in result["forward"]):
        yield COMPILE


def _number(value: float) -> str:
    return f"{value:.1f}" if value >= 1 else f"{value:.3f}"


def _mebibytes(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:.2f}"
