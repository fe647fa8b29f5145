"""Spends a budget of parameters where a model is most sensitive.

The rule of "Sensitivity-Aware Visual Parameter-Efficient Fine-Tuning" (He et al., ICCV 2023): the
tau most sensitive entries of the whole model are ranked together; a matrix that holds enough of
them gets a structured module, else these entries alone are trained.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import ProfileError
from .listing import Candidate

STEPS = 79
"""Values of tau that are tried: ceil(0.02 k scale) for k = 1 to 79."""

ROUNDING = 1e-9
"""A squared gradient that is zero but for rounding is below this share of its layer's largest."""


@dataclass(frozen=True)
class AllocationRule:
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

    def to_json(self) -> dict[str, Any]:
        """The decision as data, without the entries."""
        candidate = self.candidate
        return {
            "block": candidate.block, "tensor": candidate.tensor, "shape": list(candidate.shape),
            "sensitive": self.count, "kind": self.kind, "parameters": self.parameters,
        }  # fmt: skip


@dataclass(frozen=True)
class Allocation:
    """What a budget buys.

    Attributes:
        tau: how many entries count as sensitive.
        total: parameters as the rule counts them, the head excluded.
        decisions: one per candidate, in their order.
        trained: those that the clauses of a spec train, the head excluded, once that is known.
    """

    budget: int
    tau: int
    total: int
    decisions: tuple[Decision, ...]
    trained: int | None = None

    @property
    def released(self) -> int:
        """What the authors' code trains of `total`: it counts entries of norms, and trains none."""
        norms = (d for d in self.decisions if d.kind == "entries" and d.candidate.layer is None)
        return self.total - sum(d.parameters for d in norms)

    def to_json(self, *, entries: bool = False) -> dict[str, Any]:
        """The allocation as data; with `entries`, all that `from_json` needs.

        `total` is what is trained, `counted` what the rule counts, `released` what the authors'
        code would train of that.
        """
        decisions = {d.candidate.name: d.to_json() for d in self.decisions}
        for decision in self.decisions if entries else ():
            if len(decision.entries):
                decisions[decision.candidate.name]["entries"] = decision.entries.tolist()
        return {
            "budget": self.budget, "tau": self.tau,
            "total": self.total if self.trained is None else self.trained,
            "counted": self.total, "released": self.released, "decisions": decisions,
        }  # fmt: skip

    @property
    def digest(self) -> str:
        """Identifies all of it."""
        text = json.dumps(self.to_json(entries=True))
        return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()

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
        total = data.get("counted", data["total"])
        return cls(data["budget"], data["tau"], total, tuple(decisions))


def allocate(
    candidates: Sequence[Candidate],
    sensitivities: Mapping[str, torch.Tensor],
    budget: int,
    rule: AllocationRule,
) -> Allocation:
    """The allocation whose total is nearest to the budget; of equally near ones the largest tau.

    Args:
        candidates: what to decide on.
        sensitivities: squared gradients by parameter name, shaped as the parameters.
        budget: trained parameters, the head excluded.
        rule: how entries become decisions.

    Raises:
        ProfileError: VR761 if no tau comes within the budget's own size of it, VR766 without
            candidates, or if the structured module costs no less than any matrix itself.
    """
    _check(candidates, rule)
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
        raise _unreachable(budget, totals, len(owners), rule)
    tau = min(reachable, key=lambda t: (abs(reachable[t] - budget), -t))
    decisions = []
    for i, candidate in enumerate(candidates):
        mine = places[:tau][owners[:tau] == i]
        kind, parameters = _decide(candidate, len(mine), rule)
        entries = mine.sort().values if kind == "entries" else mine[:0]
        decisions.append(Decision(candidate, len(mine), kind, parameters, entries))
    return Allocation(budget, tau, totals[tau], tuple(decisions))


def _unreachable(
    budget: int, totals: Mapping[int, int], entries: int, rule: AllocationRule
) -> ProfileError:
    near = sorted(set(totals.values()), key=lambda n: abs(n - budget))[:3]
    note = f"the nearest totals are {', '.join(f'{n:,}' for n in sorted(near))}"
    suggestion = None
    if not totals:
        first = math.ceil(0.02 * rule.scale)
        note = f"there are {entries:,} entries, and at least {first:,} are tried"
        suggestion = f"give a smaller scale, such as scale={max(1, 50 * entries)}"
    message = f"no allocation comes near a budget of {budget:,}"
    return ProfileError("VR761", message, notes=[note], suggestion=suggestion)


def _decide(candidate: Candidate, count: int, rule: AllocationRule) -> tuple[str, int]:
    """What a candidate with so many sensitive entries gets, and what that costs."""
    size = math.prod(candidate.shape)
    if candidate.is_matrix and rule.cost is not None:
        cost = rule.cost(*candidate.shape)
        if count >= cost / rule.alpha and cost < size:
            return "structured", cost
    elif not candidate.is_matrix and rule.vectors and count >= size / rule.beta:
        return "vector", size
    if rule.structured_only or not count or not candidate.entries:
        return "nothing", 0
    return "entries", count


def _check(candidates: Sequence[Candidate], rule: AllocationRule) -> None:
    """There is something to choose, and some matrix is larger than what would adapt it."""
    if not candidates:
        raise ProfileError("VR766", "the model has no blocks whose parameters could be chosen")
    shapes = {c.shape for c in candidates if c.is_matrix}
    if rule.cost is None or not shapes or any(rule.cost(*s) < math.prod(s) for s in shapes):
        return
    shape = max(shapes, key=math.prod)
    raise ProfileError(
        "VR766",
        f"the structured module costs {rule.cost(*shape):,} parameters at the largest "
        f"matrix, which is {shape[0]}x{shape[1]}",
        suggestion="give a smaller rank or width",
    )


def _ranking(
    candidates: Sequence[Candidate], sensitivities: Mapping[str, torch.Tensor], most: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The most sensitive entries of all candidates, in order: whose they are, and where in it.

    Ties go to what comes first in the model, so that equal runs decide equally. What has no
    gradient but for rounding is not ranked.
    """
    values = [_values(c, sensitivities) for c in candidates]
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


def _values(candidate: Candidate, sensitivities: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What is ranked of a candidate: everything, or nothing if its gradient is only rounding."""
    values = candidate.of(sensitivities[candidate.parameter]).flatten()
    if candidate.null and candidate.layer is not None:
        weight = sensitivities[candidate.layer.weight]
        weight = weight[slice(*candidate.rows)] if candidate.rows else weight
        if float(values.max()) <= ROUNDING * float(weight.max()):
            return values[:0]
    return values
