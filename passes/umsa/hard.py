"""The layer once it is decided that it is a convolution: out of its heads, or by itself."""

import torch
import torch.nn.functional as F
from torch import nn

from .search import HeadMixture, PatchMap


class HeadConvolution(nn.Module):
    """A bottleneck convolution out of the v and proj of an attention, which it is given.

    It is the middle of a kernel of `size` on a side.
    """

    inserted_by = "umsa"
    changes = (0,)

    def __init__(
        self,
        hidden: int,
        heads: int,
        tau: float,
        kernel: int,
        size: int,
        grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.hidden, self.heads, self.tau = hidden, heads, tau
        self.kernel, self.size, self.grid = kernel, size, grid
        self.mixture = HeadMixture(heads, size, tau)
        self.norm = nn.BatchNorm2d(hidden)
        self.patches = PatchMap(grid)

    def forward(
        self,
        x: torch.Tensor,
        v: torch.Tensor,
        v_bias: torch.Tensor | None,
        proj: torch.Tensor,
        proj_bias: torch.Tensor | None,
        height: int = 0,
        width: int = 0,
    ) -> torch.Tensor:
        """The convolution of the patches of x; its other tokens stay as they are."""
        weight, bias, up = self.mixture(self.kernel, v, v_bias, proj)
        code = F.conv2d(self.patches(x, height, width), weight, bias, padding=self.kernel // 2)
        made = F.conv2d(F.relu(self.norm(code)), up[:, :, None, None], proj_bias)
        return self.patches.back(made, x)


class ConvBottleneck(nn.Module):
    """A bottleneck with weights of its own: a convolution, ReLU and a 1x1 convolution.

    The first convolution holds its batch norm, unless there is one behind it, `normed`; then
    neither has a bias.
    """

    inserted_by = "umsa"
    changes = (0,)

    def __init__(
        self,
        width: int,
        hidden: int,
        kernel: int,
        grid: tuple[int, int] | None = None,
        normed: bool = False,
        biased: bool = True,
    ) -> None:
        super().__init__()
        self.width, self.hidden, self.kernel = width, hidden, kernel
        self.grid, self.normed, self.biased = grid, normed, biased
        conv = nn.Conv2d(width, hidden, kernel, padding=kernel // 2, bias=not normed)
        norm = [nn.BatchNorm2d(hidden)] if normed else []
        up = nn.Conv2d(hidden, width, 1, bias=biased)
        self.layers = nn.Sequential(conv, *norm, nn.ReLU(), up)
        self.patches = PatchMap(grid)

    def forward(self, x: torch.Tensor, height: int = 0, width: int = 0) -> torch.Tensor:
        """The convolutions of the patches of x; its other tokens stay as they are."""
        made: torch.Tensor = self.patches.back(self.layers(self.patches(x, height, width)), x)
        return made


class NoAttention(nn.Module):
    """Zeros in place of an attention that is skipped, where its branch does more with them."""

    inserted_by = "umsa"
    changes = (0,)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of the shape of x."""
        return torch.zeros_like(x)
