"""Random drops that the sites of one clause share, as modules that passes need not write."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class KeepSamples(nn.Module):
    """Whether a branch is kept, by sample: 0 or 1 / (1 - p) in training, 1 otherwise.

    The samples lie along `axis`. Where it has several rows of each, such as windows, a call says
    how many samples there are; `together` says whether the rows of a sample follow each other.
    """

    inserted_by = "vitrewrite"

    def __init__(self, p: float, axis: int = 0, together: bool = True) -> None:
        super().__init__()
        self.p, self.axis, self.together = p, axis, together

    def forward(self, x: torch.Tensor, batch: int | None = None) -> torch.Tensor:
        """Factors for what has the axes of x, with length 1 along all others than `axis`."""
        rows = x.shape[self.axis]
        keep = x.new_ones(rows if batch is None else batch)
        keep = F.dropout(keep, self.p, self.training)
        if batch is not None:
            times = rows // batch
            keep = keep[:, None].expand(-1, times) if self.together else keep.expand(times, -1)
        return keep.reshape([rows if i == self.axis else 1 for i in range(x.dim())])
