"""Positions of keys that take the place of sines."""

import torch
import torch.nn.functional as F
from torch import nn


class ConditionalPosition(nn.Module):
    """Positions made from features: a depthwise convolution of a map [B, C, H, W]."""

    inserted_by = "dfpq"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.weight = nn.Parameter(torch.empty(dim, 1, 3, 3))
        self.bias = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws it as `nn.Conv2d` does."""
        nn.init.kaiming_uniform_(self.weight, a=5**0.5, generator=generator)
        nn.init.uniform_(self.bias, -1 / 3, 1 / 3, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W]."""
        return F.conv2d(x, self.weight, self.bias, padding=1, groups=self.dim)


class ProjectedPosition(nn.Module):
    """Positions made from a map of the backbone: 1x1 convolution, group norm, depthwise one."""

    inserted_by = "dfpq"

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.channels, self.dim = channels, dim
        self.projection = nn.Parameter(torch.empty(dim, channels, 1, 1))
        self.projection_bias = nn.Parameter(torch.empty(dim))
        self.norm_weight = nn.Parameter(torch.empty(dim))
        self.norm_bias = nn.Parameter(torch.empty(dim))
        self.weight = nn.Parameter(torch.empty(dim, 1, 3, 3))
        self.bias = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Xavier-uniform projection, default norm and depthwise convolution."""
        nn.init.xavier_uniform_(self.projection, generator=generator)
        nn.init.zeros_(self.projection_bias)
        nn.init.ones_(self.norm_weight)
        nn.init.zeros_(self.norm_bias)
        nn.init.kaiming_uniform_(self.weight, a=5**0.5, generator=generator)
        nn.init.uniform_(self.bias, -1 / 3, 1 / 3, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From [B, channels, H, W] to [B, C, H, W]."""
        x = F.conv2d(x, self.projection, self.projection_bias)
        x = F.group_norm(x, 32, self.norm_weight, self.norm_bias)
        return F.conv2d(x, self.weight, self.bias, padding=1, groups=self.dim)


class LearnedPosition(nn.Module):
    """A learned map of positions, resized to that of the features [B, ..., H, W]."""

    inserted_by = "dfpq"

    def __init__(self, dim: int, height: int, width: int) -> None:
        super().__init__()
        self.dim, self.height, self.width = dim, height, width
        self.position = nn.Parameter(torch.empty(dim, height, width))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """N(0, 1), as the learned queries."""
        nn.init.normal_(self.position, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W]."""
        position, size = self.position[None], x.shape[-2:]
        if size != position.shape[-2:]:
            position = F.interpolate(position, size, mode="bilinear", align_corners=False)
        return position.expand(x.shape[0], -1, -1, -1)
