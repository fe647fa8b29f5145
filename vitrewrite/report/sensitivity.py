"""`show sensitivity`: where the most sensitive parameters of a model are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..emission.file import render
from ..sensitivity.text import STACKS, position
from ..text import table

Block = int | str | None


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
        blocks: the blocks in order, those of a backbone by number and layers of decoders by role;
            None is what belongs to none, such as a final norm, the last.
        kinds: the kinds of tensors in the order of the model.
    """

    title: str
    bought: str
    blocks: tuple[Block, ...]
    kinds: tuple[str, ...]
    shares: Mapping[tuple[str, Block], Share]
    total: int

    @classmethod
    def of(cls, call: str, allocation: Mapping[str, Any]) -> Sensitivity:
        """From an allocation as `report.json` has it."""
        shares: dict[tuple[str, Block], Share] = {}
        for decision in allocation["decisions"].values():
            place = decision["tensor"], decision["block"]
            known = shares.get(place, Share(0, ()))
            kinds = tuple(dict.fromkeys((*known.decisions, decision["kind"])))
            shares[place] = Share(known.count + decision["sensitive"], kinds)
        spent = allocation["tau"]
        return cls(
            title=call,
            bought=f"{spent:,} sensitive entries buy {allocation['total']:,} parameters",
            blocks=tuple(sorted({b for _, b in shares}, key=position)),
            kinds=tuple(dict.fromkeys(k for k, _ in shares)),
            shares=shares,
            total=sum(s.count for s in shares.values()) or 1,
        )

    def share(self, kind: str, block: Block) -> float:
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
        """Tables: kinds by blocks, and by layers of each decoder, in percent of all entries."""
        lines = [f"{self.title}: {self.bought}"]
        stacks = {stack: [b for b in self.blocks if _stack(b) == stack] for stack in ("", *STACKS)}
        for stack, blocks in stacks.items():
            if blocks:
                lines += ["", *self._table(stack, blocks)]
        if any(stacks[stack] for stack in STACKS):
            lines += ["", "in percent of the sensitive entries of the whole model"]
        return "\n".join(lines)

    def _table(self, stack: str, blocks: Sequence[Block]) -> list[str]:
        rows = [(stack, *map(_number, blocks), "all")]
        for kind in (k for k in self.kinds if any((k, b) in self.shares for b in blocks)):
            parts = [self.share(kind, block) for block in blocks]
            rows.append((kind, *map(_percent, parts), _percent(sum(parts))))
        sums = [sum(self.share(kind, block) for kind in self.kinds) for block in blocks]
        return table([*rows, ("all", *map(_percent, sums), _percent(sum(sums)))])

    def picture(self) -> str:
        """An SVG: a cell per kind and block, darker where more is sensitive, and both sums."""
        most = max(self.share(k, b) for k in self.kinds for b in self.blocks) or 1.0
        rows = [
            (kind, [self._cell(kind, block, most) for block in self.blocks], share, _visible(share))
            for kind, share in zip(self.kinds, self.by_kind, strict=True)
        ]
        return render(
            "sensitivity.svg.jinja",
            title=self.title,
            bought=self.bought,
            blocks=[_label(block) for block in self.blocks],
            rows=rows,
            columns=[(share, _visible(share)) for share in self.by_block],
            most_of_a_block=max(self.by_block) or 1.0,
            most_of_a_kind=max(self.by_kind) or 1.0,
        )

    def _cell(self, kind: str, block: Block, most: float) -> tuple[str, str, str, str] | None:
        """Fill, ink, text and mark of a cell; what would be 0.0 is not written."""
        found = self.shares.get((kind, block))
        if found is None:
            return None
        share = self.share(kind, block)
        level = (share / most) ** 0.5
        fill = "#" + "".join(f"{round(255 - level * (255 - c)):02x}" for c in (0, 90, 156))
        marks = {"structured": "■", "vector": "●", "entries": "·"}
        ink = "white" if level > 0.55 else "#333333"
        return fill, ink, _visible(share), "".join(marks.get(d, "") for d in found.decisions)


def _stack(block: Block) -> str:
    """The decoder's layers that a layer is one of; "" for blocks and what belongs to none."""
    return block.partition("[")[0] if isinstance(block, str) else ""


def _number(block: Block) -> str:
    return "other" if block is None else str(position(block)[1])


def _label(block: Block) -> str:
    """A short name for a column."""
    names = dict(zip(STACKS, ("pixel ", "layer "), strict=True))
    return names.get(_stack(block), "") + _number(block)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _visible(share: float) -> str:
    """A share in percent, and nothing in place of 0.0."""
    told = _percent(share)
    return "" if told == _percent(0) else told
