"""What tokens that join the stream need around them, as modules that passes need not write."""

from __future__ import annotations

import torch
from torch import nn


class BiasWithRoom(nn.Module):
    """Zeros in a bias of scores, [.., queries, keys], for tokens that joined; True in a mask."""

    inserted_by = "vitrewrite"
    changes = (0,)

    def __init__(self, start: int, count: int, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.start, self.count, self.axes = start, count, axes

    def forward(self, bias: torch.Tensor) -> torch.Tensor:
        """The bias with `count` tokens more from `start` on."""
        for axis in self.axes:
            front = bias.narrow(axis, 0, self.start)
            behind = bias.narrow(axis, self.start, bias.shape[axis] - self.start)
            shape = list(bias.shape)
            shape[axis] = self.count
            new = bias.new_full(shape, bias.dtype == torch.bool)
            bias = torch.cat([front, new, behind], dim=axis)
        return bias


class WithoutTokens(nn.Module):
    """Takes `count` tokens from `start` on out of [batch, tokens, channels]."""

    inserted_by = "vitrewrite"
    changes = (0,)

    def __init__(self, start: int, count: int) -> None:
        super().__init__()
        self.start, self.count = start, count

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The other tokens."""
        return torch.cat([x[:, : self.start], x[:, self.start + self.count :]], dim=1)
