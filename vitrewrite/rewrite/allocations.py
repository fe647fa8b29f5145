"""`sensitive(...)` in a spec: one allocation for all clauses that name it alike.

A clause takes of the allocation what its pass attaches to: a pass for linear layers the matrices
that hold enough sensitive entries, one for entries the single entries, `train` the vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..anatomy.entries import Entries
from ..anatomy.sites import Anatomy
from ..errors import MatchError, caused_at
from ..language.model import Clause, Spec
from ..language.selectors import Call
from ..selection.kinds import KINDS
from ..selection.within import Named, Site
from ..sensitivity import Allocation, AllocationRule, Candidate, Decision, allocate, candidates
from ..sensitivity.calls import calls, way
from ..sensitivity.profile import Profile
from .passes import method_of


class Allocations:
    """Evaluates `sensitive(...)` on one model.

    Args:
        spec: whose clauses share allocations.
        root: the model.
        anatomy: its sites.
        profile: measured sensitivities, or None.
        extra: parameters that the spec trains in any case, the head excluded.
        known: allocations that were made before, as data.
        added: paths of modules that the model lacked when it was measured: no candidates.
    """

    def __init__(
        self,
        spec: Spec,
        root: nn.Module,
        anatomy: Anatomy,
        profile: Profile | None,
        extra: int,
        known: Mapping[str, Any] | None = None,
        added: Sequence[str] = (),
    ) -> None:
        self.spec, self.root, self.anatomy = spec, root, anatomy
        self.profile, self.extra, self.known = profile, extra, known or {}
        self.added = tuple(f"{path}." for path in added)
        self.made: dict[str, Allocation] = {}

    def sites(self, clause: Clause, call: Call) -> tuple[Site, ...]:
        """What a clause gets of the allocation.

        Raises:
            MatchError: VR306 without measurements.
            ProfileError: VR760 for those of another model, VR761 for a budget out of reach, VR769
                for those made another way.
        """
        kinds: tuple[type, ...] = (Named,)
        if clause.use is not None:
            kinds = tuple(KINDS[kind].finds for kind in method_of(clause).attaches)
        found = (site for d in self.allocation(call).decisions for site in _sites(d))
        return tuple(site for site in found if isinstance(site, kinds))

    def allocation(self, call: Call) -> Allocation:
        """The allocation of a selector."""
        if str(call) in self.made:
            return self.made[str(call)]
        listed = candidates(self.root, self.anatomy)
        listed = tuple(c for c in listed if not c.parameter.startswith(self.added))
        if str(call) in self.known:
            with torch.device("cpu"):
                stored = Allocation.from_json(self.known[str(call)], listed)
            return self.made.setdefault(str(call), stored)
        if self.profile is None:
            raise MatchError(
                "VR306",
                f"'{call.name}' needs measurements, and none are given",
                span=call.span,
                suggestion="give data=..., or run 'vitrewrite profile' and give its file",
            )
        with caused_at(call.span):
            made = self._allocate(call, listed, self.profile)
        return self.made.setdefault(str(call), made)

    def _allocate(self, call: Call, listed: tuple[Candidate, ...], profile: Profile) -> Allocation:
        values: dict[str, Any] = dict(call.values)
        options = {k: v for k, v in values.items() if k in AllocationRule.__dataclass_fields__}
        rule = AllocationRule(cost=self._cost(call), extra=self.extra, **options)
        profile.check_way(way(call))
        with torch.device("cpu"):  # also where the model has no data
            return allocate(listed, profile.sensitivities(listed), int(values["budget"]), rule)

    def _cost(self, call: Call) -> Any:
        """What the structured passes of the allocation cost at a matrix, if there are any."""
        naming = (c for c in self.spec.clauses if str(call) in map(str, calls(c.sites)))
        methods = [method_of(clause) for clause in naming if clause.use is not None]
        costs = [method.cost for method in methods if "linear" in method.attaches]
        return (lambda *shape: sum(cost(*shape) for cost in costs)) if costs else None


def _sites(decision: Decision) -> Iterator[Site]:
    candidate = decision.candidate
    kind = candidate.parameter.rpartition(".")[2]
    path = candidate.parameter.rpartition(".")[0]
    if candidate.part:
        path = f"{path.rpartition('.')[0]}.{candidate.part}".lstrip(".")
    if decision.kind == "structured" and candidate.site is not None:
        yield candidate.site
    elif decision.kind == "vector" and candidate.rows is None:
        yield Named(candidate.parameter, candidate.parameter, "parameter")
    elif decision.kind in ("vector", "entries"):
        places = decision.entries
        if decision.kind == "vector":  # a third of a fused bias: all of its entries
            places = torch.arange(candidate.shape[0], device="cpu")
        width = candidate.shape[1] if candidate.is_matrix else 1
        first = 0 if candidate.rows is None else candidate.rows[0] * width
        yield Entries(
            candidate.name, candidate.parameter, f"{path}.{kind}", places + first, candidate.layer
        )
