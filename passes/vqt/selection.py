"""VQT's selection of features: the columns of a head that was trained to have few long ones.

Tu et al., CVPR 2023: training again with 1e-4 times the sum over features of the L2 norms of the
head's columns; the features with the longest columns stay, and a new head is trained on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from vitrewrite.authoring import Phase, Procedure, Rewritten, Run

if TYPE_CHECKING:
    from . import SummaryHead

WEIGHT = 1e-4
"""Of the penalty, as published."""


def columns(head: SummaryHead) -> torch.Tensor:
    """The L2 norm of each column, [features]."""
    norms: torch.Tensor = torch.linalg.vector_norm(head.weight.float(), dim=0)
    return norms


def longest(norms: torch.Tensor, share: float) -> torch.Tensor:
    """Ones at a share of the features, those with the longest columns; one of them at least.

    Of equal ones the first.
    """
    count = max(1, int(len(norms) * share))
    order = torch.sort(norms, descending=True, stable=True).indices[:count]
    return torch.zeros_like(norms).scatter(0, order, 1.0)


class Sparsen(Phase):
    """Training from a fresh start, with few long columns in the head."""

    name = "train with penalty on the head's columns"

    def __init__(self, share: float) -> None:
        self.share = share

    def start(self, run: Run) -> None:
        """New values."""
        run.rewind()

    def terms(self, run: Run, batch: Any, output: Any) -> Mapping[str, torch.Tensor]:
        """The lengths of the columns."""
        total = sum((columns(head).sum() for head in heads(run.inserted("vqt"))), torch.zeros(()))
        return {"columns": WEIGHT * total}

    def finish(self, run: Run) -> None:
        """Remembers which features stay."""
        found = heads(run.rewritten.inserted("vqt"))
        run.memory["vqt.kept"] = [longest(columns(h).detach(), self.share) for h in found]


class RetrainHead(Phase):
    """A new head on the features that stay; queries are as they were trained."""

    name = "train a head on what is kept"

    def build(self, run: Run, rewritten: Rewritten) -> Rewritten:
        """Freezes all but the heads."""
        modules = rewritten.inserted("vqt")
        for module in modules:
            module.requires_grad_(module in heads(modules))
        return rewritten

    @torch.no_grad()
    def start(self, run: Run) -> None:
        """Draws the heads, and leaves features out."""
        found = heads(run.rewritten.inserted("vqt"))
        for i, (head, kept) in enumerate(zip(found, run.memory["vqt.kept"], strict=True)):
            head.reset_parameters(run.generator(f"head {i}"))
            head.kept.copy_(kept)


class SelectFeatures(Procedure):
    """Train, train with a penalty, select, train a new head."""

    def __init__(self, share: float) -> None:
        self.share = share

    def phases(self, run: Run) -> Sequence[Phase]:
        """In order."""
        return [Phase(), Sparsen(self.share), RetrainHead()]


def heads(modules: Sequence[Any]) -> list[SummaryHead]:
    """The heads among the modules of the pass."""
    return [m for m in modules if hasattr(m, "counts")]
