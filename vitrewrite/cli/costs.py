"""What a stitch may cost, as the command `lower` is told."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import UsageError


def cost(context: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    """A number of MACs such as 8.4G."""
    if text is None:
        return None
    scale = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}.get(text[-1:], 1.0)
    try:
        return round(float(text.rstrip("kKMG")) * scale)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"'{text}' is no cost such as 8.4G") from None


def time(context: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    """Milliseconds such as 12ms, 0.012s or 900us."""
    if text is None:
        return None
    number, unit = text.rstrip("mus"), text[len(text.rstrip("mus")) :]
    try:
        return float(number) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]
    except (ValueError, KeyError):
        raise click.BadParameter(f"'{text}' is no time such as 12ms") from None


def expect_one(undo: bool, **chosen: object) -> None:
    """Refuses options of `lower` that say twice what is taken out."""
    asked = [name for name, value in chosen.items() if value is not None]
    first = ["--undo"] * undo + asked
    if len(first) > 1 and first != ["--latency", "--table"]:
        message = f"{first[0]} takes no {first[1]}"
        raise UsageError("VR905", message, suggestion="leave one of them out")
    if asked == ["--table"]:
        raise UsageError(
            "VR905", "--table is for --latency", suggestion="say which: --latency 12ms"
        )


def best_at(folder: Path, macs: int | None, latency: float | None, table: Path | None) -> int:
    """The stitch that a run chose for a cost."""
    from ..folder.lock import Folder
    from ..report.stitches import TrainedStitches

    palette = TrainedStitches.of(folder, Folder.open(folder).json("report.json"))
    if latency is not None:
        return palette.timed(table).at(latency)
    assert macs is not None
    return (palette if palette.by == "macs" else palette.split()).at(macs)
