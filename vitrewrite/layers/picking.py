"""Tokens picked by their number, and where each of all tokens is then."""

import torch
from torch import nn


class Picking(nn.Module):
    """Picks tokens of [B, T, C] by number, as rows: several times as fast as a gather on a CPU."""

    def forward(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """The tokens whose numbers are in index [B, K]: [B, K, C]."""
        image = torch.arange(x.shape[0], device=x.device)[:, None]
        rows = x.flatten(0, 1).index_select(0, (index + image * x.shape[1]).flatten())
        return rows.view(*index.shape, x.shape[2])

    def best(
        self, score: torch.Tensor, prefix: int, count: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Numbers of the prefix and `count` patches of largest score [B, N], and of the others.

        Both in descending score; of equal ones the first is first. Where all stay, in order.
        """
        order = torch.arange(prefix + score.shape[1], device=score.device)
        order = order.expand(score.shape[0], -1)
        if count < score.shape[1]:
            best = score.argsort(dim=1, descending=True, stable=True) + prefix
            order = torch.cat([order[:, :prefix], best], dim=1)
        return order[:, : prefix + count], order[:, prefix + count :]

    def into(self, kept: torch.Tensor, gone: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        """For each token in front, [B, T], which token it is in: the kept ones by their order.

        Args:
            kept: numbers of those that stay.
            gone: and of the others.
            where: which token each of these is in, or -1.
        """
        stay = torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
        now = torch.cat([stay, where], dim=1)
        return torch.empty_like(now).scatter(1, torch.cat([kept, gone], dim=1), now)
