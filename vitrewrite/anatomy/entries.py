"""Entries of parameters as sites: the positions that an allocation picks one by one."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .sites import Linear


@dataclass(frozen=True)
class Entries:
    """Some entries of a matrix or vector.

    Attributes:
        role: the language's name for what they are entries of, or the parameter's name.
        parameter: its name.
        positions: flat positions in the whole parameter.
        owner: what names them in a delta: a module path, or that of a part such as `attn.q`.
        layer: the linear layer they belong to; None for a norm.
    """

    role: str
    parameter: str
    owner: str
    positions: torch.Tensor = field(repr=False, compare=False)
    layer: Linear | None = None

    @property
    def module(self) -> str:
        """The path of the layer."""
        return self.parameter.rpartition(".")[0]

    @property
    def kind(self) -> str:
        """`weight` or `bias`."""
        return self.parameter.rpartition(".")[2]
