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


class FirstTokens(nn.Module):
    """The first `count` tokens of [batch, tokens, channels]."""

    inserted_by = "vitrewrite"
    changes = (0,)

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Without the others."""
        return x[:, : self.count]


class InFrontOfWindows(nn.Module):
    """Rows of an image in front of the tokens of each of its windows."""

    inserted_by = "vitrewrite"
    changes = (0,)

    def forward(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """[images * windows, count + tokens, C] of that without rows, and [images, count, C]."""
        windows = x.shape[0] // rows.shape[0]
        each = rows[:, None].expand(-1, windows, -1, -1).flatten(0, 1)
        return torch.cat([each.to(x.dtype), x], dim=1)


class MeanOverWindows(nn.Module):
    """What became of the first rows of windows: their mean over the windows of an image."""

    inserted_by = "vitrewrite"

    def forward(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """[images, count, C] of [images * windows, count + tokens, C], for rows that entered."""
        images, count, _ = rows.shape
        return x[:, :count].reshape(images, -1, count, x.shape[-1]).mean(1)


class MeanWithRows(nn.Module):
    """The mean over the positions of a map and the rows beside it, or over the rows alone."""

    inserted_by = "vitrewrite"

    def __init__(self, alone: bool = False) -> None:
        super().__init__()
        self.alone = alone

    def forward(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """[batch, C] of [batch, .., C] and [batch, count, C]."""
        if self.alone:
            return rows.mean(1)
        return torch.cat([rows, x.flatten(1, -2)], dim=1).mean(1)
