"""The rows of papers' tables, and which spec stands for each.

`specs/papers/rows.json` has what a paper prints in a row and what we count there. A spec names its
rows (`row "fpet-2: LoRA"`) and claims what we count; `Papers` says which claim is about which
figure, and prints all of them as a page.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import catalog
from ..language.expressions import Literal, literal
from ..language.model import Claim, Spec
from .specs import Checked

# Which metrics are about a figure, and what one of its units is.
FIGURES: Mapping[str, tuple[tuple[str, ...], float, str]] = {
    "params_m": (("params", "params_lowered", "trainable"), 1e6, " M"),
    "gmacs": (("macs", "macs_lowered"), 1e9, " G"),
    "gmacs_min": (("macs", "macs_lowered"), 1e9, " G, least"),
    "gmacs_max": (("macs", "macs_lowered"), 1e9, " G, most"),
    "share": (("share",), 0.01, " %"),
    "share_vtab": (("share",), 0.01, " % (VTAB)"),
    "share_fgvc": (("share",), 0.01, " % (FGVC)"),
    "total_params": (("storage",), 1.0, " bases"),
}
_NEAR = 6e-4  # a claim is exact where a figure has few digits


@dataclass(frozen=True)
class PaperRow:
    """A row of a table.

    Attributes:
        printed: its figures as the paper has them; `digits` how many are behind the point.
        ours: the same as we count them; nothing where the paper does not say what to count.
        agrees: figures that round to what is printed.
        beside: what we count of figures that the recount does not see, in the same units.
        apart: figures that no claim of its spec is about, and why.
        missing: what vitrewrite lacks to express it.
    """

    table: str
    row: str
    method: str
    model: str
    printed: Mapping[str, Any]
    digits: Mapping[str, int]
    ours: Mapping[str, Any]
    status: str
    agrees: Sequence[str]
    beside: Mapping[str, float] = field(default_factory=dict)
    apart: Mapping[str, str] = field(default_factory=dict)
    missing: str = ""

    @property
    def seed(self) -> str:
        """The paper, such as `fpet`."""
        return self.table.rpartition("-")[0]

    def claim(self, figure: str, spec: Spec) -> Claim | None:
        """The claim of a spec that is about a figure."""
        claims = (require.claim for require in spec.requires)
        return next((c for c in claims if is_about(c, figure, self.counted(figure))), None)

    def counted(self, figure: str) -> float | None:
        """What vitrewrite is to count."""
        ours = self.ours.get(figure)
        return None if ours is None else float(ours) + self.beside.get(figure, 0.0)


def is_about(claim: Claim, figure: str, value: Any) -> bool:
    """Whether a claim says that a figure has a value."""
    metrics, unit, _ = FIGURES.get(figure, ((), 1.0, ""))
    if claim.metric not in metrics or claim.compare is None or value is None:
        return False
    bound = claim.compare.bound
    said = literal(bound) if isinstance(bound, Literal) else None
    if not isinstance(said, (int, float)):
        return False
    digits = len(repr(float(round(value, 4))).partition(".")[2])
    return bool(abs(said / unit - value) <= max(_NEAR * abs(value), 0.51 * 10.0**-digits))


def rows() -> list[PaperRow]:
    """All rows, in the order of the papers."""
    found = [folder / "papers" / "rows.json" for folder in catalog.installed().spec_folders]
    return [
        PaperRow(**entry)
        for path in found
        if path.is_file()
        for entry in json.loads(path.read_text("utf-8"))
    ]


def page(checked: Iterable[Checked]) -> str:
    """All rows as Markdown: printed, counted, under which convention, by which spec."""
    known = rows()
    specs = {(r.table, r.name): c for c in checked if c.spec for r in c.spec.rows}
    there = [row for row in known if (row.table, row.row) in specs]
    lines = [
        "# Rows of papers", "",
        "Made by `make papers`, which checks every claim. *counted* is what vitrewrite counts for",
        "the spec under the convention of the claim; one in parentheses is not as printed.", "",
        f"{len(there)} of {len(known)} rows have a spec; what the others need is below.",
    ]  # fmt: skip
    for seed in dict.fromkeys(row.seed for row in there):
        lines += ["", f"## {seed}", "", "| row | printed | counted | claim | spec |"]
        lines += ["|---|---|---|---|---|"]
        lines += [_line(row, specs[row.table, row.row]) for row in there if row.seed == seed]
    lines += ["", "## Without a spec", "", "| what is missing | rows |", "|---|---|"]
    lacking: dict[str, list[str]] = {}
    for row in known:
        if (row.table, row.row) not in specs:
            lacking.setdefault(row.missing, []).append(f"{row.table}: {row.row}")
    lines += [f"| {what} | {'; '.join(found)} |" for what, found in sorted(lacking.items())]
    return "\n".join(lines) + "\n"


def _line(row: PaperRow, checked: Checked) -> str:
    spec = checked.spec
    assert spec is not None
    cells: list[tuple[str, str, str]] = []
    for figure, value in row.printed.items():
        unit = FIGURES[figure][2] if figure in FIGURES else f" {figure}"
        claim = row.claim(figure, spec)
        counted = _measured(checked, claim, figure) if claim else ""
        if counted and figure not in row.agrees:
            counted = f"({counted})"
        told = f"`{_counted_as(claim)}`" if claim else row.apart.get(figure, "not claimed")
        cells.append((f"{value}{unit}", counted, told))
    printed, measured, told = ("<br>".join(column) for column in zip(*cells, strict=True))
    name = checked.name.removeprefix("papers/")
    link = f"[{name}](../specs/{checked.name}.peft)"
    return f"| {row.table}: {row.row} | {printed} | {measured} | {told} | {link} |"


def _counted_as(claim: Claim) -> str:
    """The metric of a claim with its options, and what is left out."""
    text = str(claim)
    assert claim.compare is not None
    return text.replace(f" {claim.compare}", "")


def _measured(checked: Checked, claim: Claim, figure: str) -> str:
    unit = FIGURES[figure][1]
    found = {verdict.claim: verdict.measured for verdict in checked.claims}.get(str(claim))
    return "" if found is None else f"{found / unit:.4f}".rstrip("0").rstrip(".")


def write_page(path: Path, checked: Iterable[Checked]) -> None:
    """Writes the page of all rows."""
    from ..disk import replacing_file

    with replacing_file(path) as file:
        file.write_text(page(checked), encoding="utf-8")
