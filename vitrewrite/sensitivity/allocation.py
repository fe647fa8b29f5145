"""Spends a budget of parameters where a model is most sensitive.

The rule of "Sensitivity-Aware Visual Parameter-Efficient Fine-Tuning" (He et al., ICCV 2023): the
tau most sensitive entries of the whole model are ranked together; a matrix that holds enough of
them gets a structured module, else these entries alone are trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import ProfileError
from .listing import Candidate

STEPS = 79
"""Values of tau that are tried: ceil(0.02 k scale) for k = 1 to 79."""


@dataclass(frozen=True)
class Rule:
    """How entries become decisions.

    Attributes:
        cost: parameters of a structured module at a matrix of so many rows and columns, or None if
            there is none to choose.
        alpha: a matrix gets its module from cost / alpha sensitive entries on; 10 as released, 1
            as published.
        beta: a vector of length m is trained whole from m / beta sensitive entries on.
        vectors: whether vectors are trained whole at all.
        structured_only: leaves out single entries.
        scale: the unit of the values of tau that are tried.
        extra: parameters that are trained in any case and count, such as the class token.
    """

    cost: Callable[[int, int], int] | None
    alpha: float = 10.0
    beta: float = 5.0
    vectors: bool = True
    structured_only: bool = False
    scale: int = 1_000_000
    extra: int = 0


@dataclass(frozen=True)
class Decision:
    """What one candidate gets.

    Attributes:
        count: how many of the tau most sensitive entries it holds.
        kind: `structured`, `vector`, `entries` or `nothing`.
        parameters: how many that trains.
        entries: the flat positions of the entries, for `entries`.
    """

    candidate: Candidate
    count: int
    kind: str
    parameters: int
    entries: torch.Tensor = field(repr=False, default_factory=lambda: torch.empty(0).long())


@dataclass(frozen=True)
class Allocation:
    """What a budget buys.

    Attributes:
        tau: how many entries count as sensitive.
        total: trained parameters, the head excluded.
        decisions: one per candidate, in their order.
    """

    budget: int
    tau: int
    total: int
    decisions: tuple[Decision, ...]

    def to_json(self, *, entries: bool = False) -> dict[str, Any]:
        """The allocation as data; with `entries`, all that `from_json` needs."""
        decisions: dict[str, dict[str, Any]] = {
            d.candidate.name: {"sensitive": d.count, "kind": d.kind, "parameters": d.parameters}
            for d in self.decisions
        }
        for decision in self.decisions if entries else ():
            if len(decision.entries):
                decisions[decision.candidate.name]["entries"] = decision.entries.tolist()
        return {
            "budget": self.budget, "tau": self.tau, "total": self.total, "decisions": decisions,
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any], candidates: Sequence[Candidate]) -> Allocation:
        """An allocation that was stored with its entries."""
        decisions = []
        for candidate in candidates:
            stored = data["decisions"][candidate.name]
            entries = torch.tensor(stored.get("entries", []), dtype=torch.long)
            decisions.append(
                Decision(
                    candidate, stored["sensitive"], stored["kind"], stored["parameters"], entries
                )
            )
        return cls(data["budget"], data["tau"], data["total"], tuple(decisions))


def allocate(
    candidates: Sequence[Candidate], sensitivities: Mapping[str, torch.Tensor], budget: int,
    rule: Rule,
) -> Allocation:  # fmt: skip
    """The allocation whose total is nearest to the budget; of equally near ones the largest tau.

    Args:
        candidates: what to decide on.
        sensitivities: squared gradients by parameter name, shaped as the parameters.
        budget: trained parameters, the head excluded.
        rule: how entries become decisions.

    Raises:
        ProfileError: VR761 if no tau comes within the budget's own size of it.
    """
    owners, places = _ranking(candidates, sensitivities, math.ceil(0.02 * STEPS * rule.scale))
    taus = [math.ceil(0.02 * k * rule.scale) for k in range(1, STEPS + 1)]
    taus = [t for t in taus if t <= len(owners)]
    totals = {}
    for tau in taus:
        counts = torch.bincount(owners[:tau], minlength=len(candidates)).tolist()
        pairs = zip(candidates, counts, strict=True)
        totals[tau] = rule.extra + sum(_decide(c, n, rule)[1] for c, n in pairs)
    reachable = {t: n for t, n in totals.items() if abs(n - budget) <= budget}
    if not reachable:
        near = sorted(set(totals.values()), key=lambda n: abs(n - budget))[:3]
        raise ProfileError(
            "VR761", f"no allocation comes near a budget of {budget:,}",
            notes=[f"the nearest totals are {', '.join(f'{n:,}' for n in sorted(near))}"],
        )  # fmt: skip
    tau = min(reachable, key=lambda t: (abs(reachable[t] - budget), -t))
    decisions = []
    for i, candidate in enumerate(candidates):
        mine = places[:tau][owners[:tau] == i]
        kind, parameters = _decide(candidate, len(mine), rule)
        entries = mine.sort().values if kind == "entries" else mine[:0]
        decisions.append(Decision(candidate, len(mine), kind, parameters, entries))
    return Allocation(budget, tau, totals[tau], tuple(decisions))


def _decide(candidate: Candidate, count: int, rule: Rule) -> tuple[str, int]:
    """What a candidate with so many sensitive entries gets, and what that costs."""
    size = math.prod(candidate.shape)
    if candidate.is_matrix and rule.cost is not None:
        cost = rule.cost(*candidate.shape)
        if count >= cost / rule.alpha:
            return "structured", cost
    elif not candidate.is_matrix and rule.vectors and count >= size / rule.beta:
        return "vector", size
    if rule.structured_only or not count:
        return "nothing", 0
    return "entries", count


def _ranking(
    candidates: Sequence[Candidate], sensitivities: Mapping[str, torch.Tensor], most: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The most sensitive entries of all candidates, in order: whose they are, and where in it.

    Ties go to what comes first in the model, so that equal runs decide equally.
    """
    values = [
        torch.zeros(math.prod(c.shape)) if c.null else c.of(sensitivities[c.parameter]).flatten()
        for c in candidates
    ]
    lengths = torch.tensor([len(v) for v in values])
    flat = torch.cat(values).float()
    most = min(most, len(flat))
    least = torch.topk(flat, most).values[-1]
    above = (flat > least).nonzero()[:, 0]
    tied = (flat == least).nonzero()[: most - len(above), 0]
    chosen = torch.cat([above, tied]).sort().values
    chosen = chosen[torch.sort(flat[chosen], descending=True, stable=True).indices]
    starts = torch.cumsum(lengths, 0) - lengths
    owners = torch.bucketize(chosen, starts, right=True) - 1
    return owners, chosen - starts[owners]
