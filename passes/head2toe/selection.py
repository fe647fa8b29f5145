"""Head2Toe's selection: the columns of a head that was trained to have few long ones.

Evci et al., ICML 2022: a head on all features, with 1e-4 times the sum over features of the L2
norms of its columns; the features with the longest columns stay, and a new head is trained on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from vitrewrite.authoring import FoundOptions, Phase, Procedure, Rewritten, Run, decided

if TYPE_CHECKING:
    from . import TapsHead

NAME = "head2toe"


class TrainSelectTrain(Procedure):
    """Where features were selected before, as in a folder, a head is trained on them alone."""

    def __init__(self, fraction: float, penalty: float) -> None:
        self.fraction, self.penalty = fraction, penalty

    def phases(self, run: Run) -> Sequence[Phase]:
        """A head on all features; unless all stay, one on those that do."""
        options: Any = run.passes(NAME)[0]
        if options.kept:
            return ()
        count = sum(head_of(run.original.inserted(NAME)).features)
        if int(self.fraction * count) < 1:
            raise run.refuse(
                f"a share of {self.fraction:g} leaves none of {count} features",
                suggestion=f"write fraction={1 / count:.2g}, or more",
            )
        if self.fraction == 1:
            return (OnAll(self),)
        return OnAll(self), OnKept()


class OnAll(Phase):
    """Training of a head on all features, with few long columns."""

    name = "a head on all features"

    def __init__(self, options: TrainSelectTrain) -> None:
        self.options = options

    def terms(self, run: Run, batch: Any, output: Any) -> Mapping[str, torch.Tensor]:
        """The lengths of the columns."""
        head = head_of(run.inserted(NAME))
        return (
            {"columns": self.options.penalty * lengths(head.weight)} if self.options.penalty else {}
        )

    def finish(self, run: Run) -> None:
        """Scores the features, and remembers which stay."""
        if self.options.fraction == 1:
            return
        head = head_of(run.rewritten.inserted(NAME))
        kept = selected(scores(head.weight.detach()), self.options.fraction)
        run.memory["head2toe.kept"] = kept.cpu()


class OnKept(Phase):
    """Training of a new head on the features that stay."""

    name = "a head on what is kept"

    def build(self, run: Run, rewritten: Rewritten) -> Rewritten:
        """The same clauses; what no kept feature is made of is gone."""
        kept = {"kept": run.memory["head2toe.kept"].tolist()}
        step = next(s for s in rewritten.result.steps if s.clause.pass_name == NAME)
        found = FoundOptions(dict.fromkeys(step.sites, kept))
        return decided(rewritten, {NAME: found}, anew=True)

    def start(self, run: Run) -> None:
        """Draws it."""
        head_of(run.rewritten.inserted(NAME)).reset_parameters(run.generator("head"))


def lengths(weight: torch.Tensor) -> torch.Tensor:
    """The sum over features of the lengths of their columns."""
    total: torch.Tensor = torch.linalg.vector_norm(weight.float(), dim=0).sum()
    return total


def scores(weight: torch.Tensor) -> torch.Tensor:
    """The sum of squares of each column."""
    return weight.float().square().sum(0)


def selected(values: torch.Tensor, fraction: float) -> torch.Tensor:
    """The share of features with the highest scores, in falling order; of equal ones the first."""
    count = max(1, int(len(values) * fraction))
    return torch.sort(values, descending=True, stable=True).indices[:count]


def head_of(modules: Sequence[Any]) -> TapsHead:
    """The head that the pass put in."""
    (found,) = modules
    head: TapsHead = found
    return head
