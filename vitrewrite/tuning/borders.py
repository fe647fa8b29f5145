"""Where in a ranking of parts the border lies at which a model costs what is asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .spaces import Space


def ranked(space: Space, scores: Sequence[torch.Tensor], target: float) -> torch.Tensor:
    """The score in the middle between the last part that is affordable and the next one.

    Args:
        space: what is decided about.
        scores: by module, of its parts.
        target: MACs of an image.
    """
    values = torch.cat([each.detach().flatten().double() for each in scores])
    prices = values.new_tensor([price for part in space.parts for price in part.prices])
    order = values.argsort(descending=True, stable=True)
    total = space.constant + prices[order].cumsum(0)
    count = (total <= target).sum()
    values = values[order]
    outside = torch.cat([values[:1] + 1, values, values[-1:] - 1])
    return (outside[count] + outside[count + 1]) / 2


def bordered(space: Space, scores: Sequence[torch.Tensor], target: float) -> list[list[float]]:
    """How far the scores of parts are above the border."""
    border = float(ranked(space, scores, target))
    return [[value - border for value in each.flatten().tolist()] for each in scores]
