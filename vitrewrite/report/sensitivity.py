"""`show sensitivity`: where the most sensitive parameters of a model are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..emission.file import render
from .text import table


@dataclass(frozen=True)
class Share:
    """How many of the sensitive entries lie in one kind of tensor of one block."""

    kind: str
    block: str
    count: int
    decision: str


@dataclass(frozen=True)
class Sensitivity:
    """An allocation by block and by kind of tensor.

    Attributes:
        title: the selector.
        bought: what it came to.
        blocks: the blocks in order; "" is what belongs to none, such as the final norm.
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
        for name, decision in allocation["decisions"].items():
            block, kind = _split(name)
            shares[kind, block] = Share(kind, block, decision["sensitive"], decision["kind"])
        spent = allocation["tau"]
        return cls(
            title=call,
            bought=f"{spent:,} sensitive entries buy {allocation['total']:,} parameters",
            blocks=tuple(dict.fromkeys(b for _, b in shares)),
            kinds=tuple(dict.fromkeys(k for k, _ in shares)),
            shares=shares,
            total=sum(s.count for s in shares.values()) or 1,
        )

    def share(self, kind: str, block: str) -> float:
        """The part of all sensitive entries that lies there, from 0 to 1."""
        found = self.shares.get((kind, block))
        return found.count / self.total if found else 0.0

    def text(self) -> str:
        """A table: kinds by blocks, in percent of all sensitive entries."""
        rows = [("", *self.blocks, "all")]
        for kind in self.kinds:
            parts = [self.share(kind, block) for block in self.blocks]
            rows.append((kind, *(f"{100 * p:.1f}" for p in parts), f"{100 * sum(parts):.1f}"))
        columns = [sum(self.share(k, b) for k in self.kinds) for b in self.blocks]
        rows.append(("all", *(f"{100 * c:.1f}" for c in columns), "100.0"))
        return "\n".join([f"{self.title}: {self.bought}", "", *table(rows)])

    def picture(self) -> str:
        """An SVG: a cell per kind and block, darker where more is sensitive."""
        most = max(self.share(k, b) for k in self.kinds for b in self.blocks) or 1.0
        rows = [
            (kind, [self._cell(kind, block, most) for block in self.blocks]) for kind in self.kinds
        ]
        return render(
            "sensitivity.svg.jinja",
            title=self.title,
            bought=self.bought,
            blocks=self.blocks,
            rows=rows,
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
        return fill, ink, f"{100 * share:.1f}", marks.get(found.decision, "")


def _split(name: str) -> tuple[str, str]:
    """The block and the kind: `layers.0.blocks.1.mlp.fc1.weight` is `0.1` and `mlp.fc1.weight`."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    rest = parts[numbers[-1] + 1 :] if numbers else parts
    return ".".join(parts[i] for i in numbers), ".".join(rest)
