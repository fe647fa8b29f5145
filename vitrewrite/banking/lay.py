"""Taking the samples of a batch apart, and putting them together again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..editing.samples import Samples


@dataclass(frozen=True)
class Lay:
    """How samples lie in a tensor: along an axis, each in several rows that are together or apart.

    Attributes:
        axis: of the samples.
        apart: whether the rows of all samples take turns.
    """

    axis: int
    apart: bool = False

    @classmethod
    def of(cls, samples: Samples) -> Lay:
        """The same, as it is known of a place."""
        return cls(samples.axis, samples.order == "apart")

    def sample(self, value: torch.Tensor, number: int, count: int) -> torch.Tensor:
        """One sample out of `count`, with the axes of the batch."""
        rows = value.shape[self.axis] // count
        if self.apart:
            return torch.unflatten(value, self.axis, (rows, count)).select(self.axis + 1, number)
        return value.narrow(self.axis, number * rows, rows)

    def together(self, samples: Sequence[torch.Tensor]) -> torch.Tensor:
        """The batch of some samples."""
        if self.apart:
            return torch.stack(list(samples), self.axis + 1).flatten(self.axis, self.axis + 1)
        return torch.cat(list(samples), self.axis)

    def first(self, value: torch.Tensor, count: int) -> torch.Tensor:
        """The samples on an axis of their own in front, each with the axes of the batch."""
        sizes = (-1, count) if self.apart else (count, -1)
        return torch.unflatten(value, self.axis, sizes).movedim(self.axis + self.apart, 0)

    def back(self, value: torch.Tensor) -> torch.Tensor:
        """What `first` took apart."""
        return value.movedim(0, self.axis + self.apart).flatten(self.axis, self.axis + 1)

    def mask(self, chosen: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Which rows of a batch are of chosen samples [count], to be broadcast over it."""
        length, count = like.shape[self.axis], chosen.shape[0]
        times = length // count
        rows = chosen.repeat(times) if self.apart else chosen.repeat_interleave(times)
        return rows.view([length if i == self.axis else 1 for i in range(like.dim())])
