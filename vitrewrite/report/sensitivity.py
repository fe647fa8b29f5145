"""`show sensitivity`: where the most sensitive parameters of a model are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..emission.file import render
from .text import table


@dataclass(frozen=True)
class Share:
    """How many of the sensitive entries lie in one kind of tensor of one block.

    Attributes:
        decisions: what was decided for it; several where several layers share a name.
    """

    count: int
    decisions: tuple[str, ...]


@dataclass(frozen=True)
class Sensitivity:
    """An allocation by block and by kind of tensor.

    Attributes:
        title: the selector.
        bought: what it came to.
        blocks: the blocks in order; "" is what belongs to none, such as a final norm, the last.
        kinds: the kinds of tensors in the order of the model.
    """

    title: str
    bought: str
    blocks: tuple[str, ...]
    kinds: tuple[str, ...]
    shares: Mapping[tuple[str, str], Share]
    total: int

    @classmethod
    def of(cls, call: str, allocation: Mapping[str, Any]) -> Sensitivity:
        """From an allocation as `report.json` has it."""
        shares: dict[tuple[str, str], Share] = {}
        for decision in allocation["decisions"].values():
            block = "" if decision["block"] is None else str(decision["block"])
            place = decision["tensor"], block
            known = shares.get(place, Share(0, ()))
            kinds = tuple(dict.fromkeys((*known.decisions, decision["kind"])))
            shares[place] = Share(known.count + decision["sensitive"], kinds)
        spent = allocation["tau"]
        return cls(
            title=call,
            bought=f"{spent:,} sensitive entries buy {allocation['total']:,} parameters",
            blocks=tuple(sorted({b for _, b in shares}, key=lambda b: (not b, int(b or 0)))),
            kinds=tuple(dict.fromkeys(k for k, _ in shares)),
            shares=shares,
            total=sum(s.count for s in shares.values()) or 1,
        )

    def share(self, kind: str, block: str) -> float:
        """The part of all sensitive entries that lies there, from 0 to 1."""
        found = self.shares.get((kind, block))
        return found.count / self.total if found else 0.0

    @property
    def by_kind(self) -> list[float]:
        """The part of all sensitive entries in each kind of tensor."""
        return [sum(self.share(kind, block) for block in self.blocks) for kind in self.kinds]

    @property
    def by_block(self) -> list[float]:
        """The part of all sensitive entries in each block."""
        return [sum(self.share(kind, block) for kind in self.kinds) for block in self.blocks]

    def text(self) -> str:
        """A table: kinds by blocks, in percent of all sensitive entries."""
        rows = [("", *(block or "other" for block in self.blocks), "all")]
        for kind, whole in zip(self.kinds, self.by_kind, strict=True):
            parts = (self.share(kind, block) for block in self.blocks)
            rows.append((kind, *map(_percent, parts), _percent(whole)))
        rows.append(("all", *map(_percent, self.by_block), "100.0"))
        return "\n".join([f"{self.title}: {self.bought}", "", *table(rows)])

    def picture(self) -> str:
        """An SVG: a cell per kind and block, darker where more is sensitive, and both sums."""
        most = max(self.share(k, b) for k in self.kinds for b in self.blocks) or 1.0
        rows = [
            (kind, [self._cell(kind, block, most) for block in self.blocks], share, _percent(share))
            for kind, share in zip(self.kinds, self.by_kind, strict=True)
        ]
        return render(
            "sensitivity.svg.jinja",
            title=self.title,
            bought=self.bought,
            blocks=[block or "other" for block in self.blocks],
            rows=rows,
            columns=[(share, _percent(share)) for share in self.by_block],
            most_of_a_block=max(self.by_block) or 1.0,
            most_of_a_kind=max(self.by_kind) or 1.0,
        )

    def _cell(self, kind: str, block: str, most: float) -> tuple[str, str, str, str]:
        """Fill, ink, text and mark of a cell."""
        found = self.shares.get((kind, block))
        if found is None:
            return "#ffffff", "#999999", "", ""
        share = self.share(kind, block)
        level = (share / most) ** 0.5
        fill = "#" + "".join(f"{round(255 - level * (255 - c)):02x}" for c in (0, 90, 156))
        marks = {"structured": "■", "vector": "●", "entries": "·"}
        ink = "white" if level > 0.55 else "#333333"
        return fill, ink, _percent(share), "".join(marks.get(d, "") for d in found.decisions)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
