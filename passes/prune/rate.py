"""How thresholds of merging and pruning are trained: towards a share of the operations."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from vitrewrite.authoring import ParameterGroup, Procedure, Run, Watched


@dataclass(frozen=True)
class ThresholdRate(Procedure):
    """weight (rho - target)^2; thresholds of both kinds at rates of their own, within [0, 1]."""

    target: float
    weight: float
    merge_lr: float
    prune_lr: float
    seen: Watched = field(default_factory=Watched)

    def groups(self, run: Run) -> Iterable[ParameterGroup]:
        """One for each kind of threshold; none decays, as they have one dimension."""
        for kind, lr in (("merge", self.merge_lr), ("prune", self.prune_lr)):
            names = (n for n, p in run.module.named_parameters() if p.requires_grad)
            found = tuple(n for n in names if n.endswith(f".{kind}_threshold"))
            yield ParameterGroup(f"{kind} thresholds", found, lr=lr)

    def deciding(self, run: Run) -> list[Any]:
        """The modules that decide, from the first one on."""
        return [m for m in run.inserted("prune.ltmp") if hasattr(m, "merge_threshold")]

    def before_step(self, run: Run) -> None:
        """Watches who decides."""
        modules = {str(i): m for i, m in enumerate(self.deciding(run))}
        self.seen.on(run.module, modules)

    def terms(self, run: Run, batch: Any, output: Any) -> Mapping[str, torch.Tensor]:
        """How far the share of operations that is left is from the target."""
        modules = self.deciding(run)
        masks = [self.seen.values[str(i)][0] for i, _ in enumerate(modules)]
        left = cost_left([m.float().mean() for m in masks], masks[0].shape[1], modules[0].dim)
        return {"rate": self.weight * (left - self.target) ** 2}

    def after_step(self, run: Run) -> None:
        """Clamps the thresholds."""
        with torch.no_grad():
            for module in self.deciding(run):
                module.merge_threshold.clamp_(0, 1)
                module.prune_threshold.clamp_(0, 1)


def cost_left(shares: Sequence[torch.Tensor], tokens: int, dim: int) -> torch.Tensor:
    """rho: the share of operations that is left when these shares of tokens leave each block.

    With a_0 = 1, n tokens and width d, the mean over blocks of
    (2 a_i n d^2 + (a_i n)^2 d + 4 a_{i+1} n d^2) / (6 n d^2 + n^2 d).
    """
    whole = 6 * tokens * dim**2 + tokens**2 * dim
    before = torch.ones_like(shares[0])
    costs = []
    for behind in shares:
        attention = 2 * before * tokens * dim**2 + (before * tokens) ** 2 * dim
        costs.append((attention + 4 * behind * tokens * dim**2) / whole)
        before = behind
    return torch.stack(costs).mean()
