"""Positional queries: h(x + B), where x tells where a query looks."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class PositionalQueries(nn.Module):
    """h(x + B), where x tells where a query looks; h is a perceptron of two layers.

    x is what weights [B, queries, n] pool of positions [B, C, height, width]; as an `anchor` the
    sine encoding of the point that they pool, or without weights that of a fixed point.
    """

    inserted_by = "dfpq"

    def __init__(self, dim: int, anchor: bool = False) -> None:
        super().__init__()
        self.dim, self.anchor = dim, anchor
        self.h = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws both layers as torch does."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(self.dim**-0.5), self.dim**-0.5, generator=generator)

    def forward(
        self,
        bias: torch.Tensor,
        weights: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Positional queries, [queries, B, C]; `bias` is of the same shape."""
        if weights is None or positions is None:
            x = self.encoded(self.grid(bias))[:, None]
        elif self.anchor:
            x = self.encoded(weights @ self.centres(positions)).transpose(0, 1)
        else:
            x = torch.einsum("bqn,bcn->qbc", weights, positions.flatten(2))
        found: torch.Tensor = self.h(x + bias)
        return found

    def centres(self, like: torch.Tensor) -> torch.Tensor:
        """(y, x) of each position of a map in [0, 1], row by row: [n, 2]."""
        height, width = like.shape[-2:]
        y = (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) / height
        x = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) / width
        return torch.stack([y.repeat_interleave(width), x.repeat(height)], dim=1)

    def grid(self, like: torch.Tensor) -> torch.Tensor:
        """(y, x) of one point per query, on a square grid that may miss its last ones: [Q, 2]."""
        count = like.shape[0]
        side = int((count - 1) ** 0.5) + 1
        number = torch.arange(count, device=like.device)
        rows, columns = number // side, number % side
        return (torch.stack([rows, columns], dim=1).to(like.dtype) + 0.5) / side

    def encoded(self, points: torch.Tensor) -> torch.Tensor:
        """Sine encoding of points, [..., 2] to [..., C]: one half for y, one for x."""
        number = torch.arange(self.dim // 4, device=points.device, dtype=points.dtype)
        angle = points[..., None] * (2 * math.pi) / 10000 ** (number / (self.dim // 4))
        return torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(-2)


class MaskPool(nn.Module):
    """Weights [B, queries, h w] of a mean over the background, or foreground, of masks.

    The masks are logits [B, queries, H, W]; `like` is a map [B, ..., h, w].
    """

    inserted_by = "dfpq"

    def __init__(self, foreground: bool = False) -> None:
        super().__init__()
        self.foreground = foreground

    def forward(self, masks: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """One over the number of positions on that side, zero on the other; no gradient."""
        masks = F.interpolate(masks.detach(), like.shape[-2:], mode="bilinear", align_corners=False)
        probable = masks.flatten(2).sigmoid()
        side = (probable > 0.5 if self.foreground else probable < 0.5).to(masks.dtype)
        return side / (side.sum(-1, keepdim=True) + 1e-6)
