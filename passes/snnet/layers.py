"""What stitches go through between two models."""

import torch
import torch.nn.functional as F
from torch import nn


class StitchingLayer(nn.Module):
    """y = x W^T + b for each token; with `maps` for each position of [B, C, H, W]."""

    inserted_by = "snnet"

    def __init__(self, inputs: int, outputs: int, maps: bool = False) -> None:
        super().__init__()
        self.inputs, self.outputs, self.maps = inputs, outputs, maps
        kernel = (1, 1) if maps else ()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, *kernel))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """What stands there until least squares are solved."""
        nn.init.trunc_normal_(self.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the end takes, of what the front yields."""
        if self.maps:
            return F.conv2d(x, self.weight, self.bias)
        return F.linear(x, self.weight, self.bias)


class AdaptedStitchingLayer(nn.Module):
    """y = W x + b + up(down(x)) + the row of the stitch that runs, of [B, N, C] or of a map.

    W and b are frozen where there is an update. `stitches` are the numbers of those with a row.
    """

    inserted_by = "snnet"

    def __init__(
        self, inputs: int, outputs: int, maps: bool, rank: int, stitches: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.inputs, self.outputs, self.maps = inputs, outputs, maps
        self.rank, self.stitches = rank, stitches
        self.running: int | None = None  # while a stitch runs, its number
        self.frozen = ("weight", "bias") if rank else ()
        kernel = (1, 1) if maps else ()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, *kernel))
        self.bias = nn.Parameter(torch.empty(outputs))
        if rank:
            self.down = nn.Parameter(torch.empty(rank, inputs))
            self.up = nn.Parameter(torch.empty(outputs, rank))
        if stitches:
            self.table = nn.Parameter(torch.empty(len(stitches), outputs))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Weight and `down` are drawn; `up` and the biases start at zero."""
        nn.init.trunc_normal_(self.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.bias)
        if self.rank:
            nn.init.normal_(self.down, std=0.02, generator=generator)
            nn.init.zeros_(self.up)
        if self.stitches:
            nn.init.zeros_(self.table)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the end takes, of what the front yields."""
        x = x.movedim(1, -1) if self.maps else x
        y = F.linear(x, self.weight.flatten(1), self.bias)
        if self.rank:
            y = y + F.linear(F.linear(x, self.down), self.up)
        if self.stitches:
            row = 0 if self.running is None else self.stitches.index(self.running)
            y = y + self.table[row]
        return y.movedim(-1, 1) if self.maps else y

    def whole(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The weight with its update, and the bias."""
        if not self.rank:
            return self.weight, self.bias
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        update = (self.up.to(wide) @ self.down.to(wide)).view(self.weight.shape)
        return (self.weight.to(wide) + update).to(self.weight.dtype), self.bias
