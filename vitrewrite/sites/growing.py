"""Biases of scores that grow with the tokens, as modules that passes need not write.

A bias has a length of 1 where it is the same for all tokens; that one needs no room for more.
Tokens that joined have no position, so theirs is 0.
"""

from __future__ import annotations

import torch
from torch import nn


class GrownScores(nn.Module):
    """A bias of scores with zeros for the tokens that joined at `start` since it was made."""

    inserted_by = "vitrewrite"

    def __init__(self, start: int) -> None:
        super().__init__()
        self.start = start

    def forward(self, bias: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """[batch or 1, heads or 1, queries, keys], as many as there are tokens now."""
        for axis, tokens in ((2, query), (3, key)):
            missing = tokens.shape[2] - bias.shape[axis]
            if missing and bias.shape[axis] > 1:
                front, back = bias.tensor_split([self.start], axis)
                shape = list(bias.shape)
                shape[axis] = missing
                bias = torch.cat([front, bias.new_zeros(shape), back], axis)
        return bias
