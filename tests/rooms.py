"""The picture of the rooms in `docs/architecture.md`; `python -m tests.rooms` draws it again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

PICTURE = Path(__file__).parents[1] / "docs" / "rooms.svg"


class Band(NamedTuple):
    """Rooms that stand beside each other in the order of packages.

    Attributes:
        yields: what they make, for those that stand below.
    """

    title: str
    rooms: tuple[str, ...]
    yields: str


BANDS = (
    Band("ground: errors, files, names",
         ("errors", "version", "text", "disk", "storage", "layers", "catalog"),
         "errors with codes, files, passes by name"),
    Band("what is written: without torch", ("language",), "Spec"),
    Band("what a model is", ("tracing", "anatomy"), "tree of units, Anatomy"),
    Band("how a model is printed", ("emission", "program"), "classes, model.py"),
    Band("what is asked for", ("models", "data", "tasks"), "Request, batches, losses"),
    Band("how a model is changed",
         ("editing", "selection", "sensitivity", "sites", "features", "rewrite"),
         "Compilation, Rewritten"),
    Band("what comes of it",
         ("profiling", "report", "interchange", "folder", "banking", "verification"),
         "pictures, folders, checks"),
    Band("doors: what people call",
         ("api", "tuning", "authoring", "checking", "bench", "cli"),
         "vr.apply, vitrewrite apply, passes"),
)  # fmt: skip
WIDTH, BOX, HEIGHT, GAP, LEFT = 1000, 90, 30, 8, 16
COLOURS = ("#eef1f4", "#e5f0e0", "#e0ecf6", "#f6ecd9", "#f1e5f1", "#fbe4dc", "#e2f1ef", "#eeeeee")


def draw() -> str:
    """The picture: a band under the other, each imports only what stands above or left of it."""
    step = HEIGHT + 52
    height = len(BANDS) * step + 36
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        *(line for i, band in enumerate(BANDS) for line in _band(band, 8 + i * step, COLOURS[i])),
        _text(LEFT, height - 14, "A room imports what stands above it, or left of it in its band. "
              "Passes import authoring and torch alone.", "#444444"),
        "</svg>",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _band(band: Band, top: int, colour: str) -> Iterator[str]:
    yield (
        f'<rect x="8" y="{top}" width="{WIDTH - 16}" height="{HEIGHT + 44}" rx="6" '
        f'fill="{colour}"/>'
    )
    yield _text(LEFT, top + 19, band.title, "#444444")
    for i, room in enumerate(band.rooms):
        x, y = LEFT + i * (BOX + GAP), top + 32
        yield (
            f'<rect x="{x}" y="{y}" width="{BOX}" height="{HEIGHT}" rx="4" fill="#ffffff" '
            'stroke="#8a929a"/>'
        )
        yield _text(x + BOX // 2, y + 20, room, "#111111", anchor="middle")
    x = LEFT + len(BANDS[0].rooms) * (BOX + GAP) + 4
    yield _text(x, top + 52, band.yields, "#111111")


def _text(x: int, y: int, text: str, fill: str, *, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" fill="{fill}" text-anchor="{anchor}">{escape(text)}</text>'


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
