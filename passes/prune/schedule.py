"""A share of patches that falls while a model is trained."""

import math
from dataclasses import dataclass

from vitrewrite.authoring import Procedure, Run


@dataclass(frozen=True)
class FallingKeep(Procedure):
    """All patches stay for `start` epochs; over `length` more their share falls along a cosine."""

    name: str
    start: int
    length: int

    def before_step(self, run: Run) -> None:
        """The share of this step, in every module of the pass."""
        for module in run.inserted(self.name):
            module.rate = share(module.keep, run.epoch, self.start, self.length)  # type: ignore


def share(keep: float, epoch: float, start: int, length: int) -> float:
    """What stays after so many epochs: keep + (1 - keep) (1 + cos(pi t)) / 2, t from 0 to 1."""
    done = min(max((epoch - start) / length, 0.0), 1.0)
    return keep + (1 - keep) * (1 + math.cos(math.pi * done)) / 2
