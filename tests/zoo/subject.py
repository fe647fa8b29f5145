"""One model of the zoo: how it is built small, and what it is called with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Inputs = dict[str, Any]
"""What a model is called with by keyword, or under "" its one positional argument."""


@dataclass(frozen=True)
class Subject:
    """A model that is looked at.

    Attributes:
        library: the list that it is in.
        name: its name there.
        build: makes it, with random weights.
        inputs: for a batch size and a factor of height and width, what it is called with; the
            factor is 1 for the size that it is made for.
    """

    library: str
    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int, float], Inputs]

    @property
    def key(self) -> str:
        """Its name in all lists."""
        return f"{self.library}:{self.name}"

    @property
    def in_ci(self) -> bool:
        """Whether it is in the tenth that CI runs: those whose name's hash ends in 0."""
        return int(hashlib.sha256(self.key.encode()).hexdigest(), 16) % 10 == 0


def images(*size: int, dtype: torch.dtype = torch.float32) -> Callable[[int, float], Inputs]:
    """One image tensor [batch, *size] as the only argument; the last two lengths scale."""

    def make(batch: int, factor: float) -> Inputs:
        *channels, height, width = size
        scaled = (round(height * factor), round(width * factor))
        generator = torch.Generator().manual_seed(batch)
        return {"": torch.randn(batch, *channels, *scaled, generator=generator, dtype=dtype)}

    return make


def call(model: nn.Module, inputs: Inputs) -> Any:
    """Calls the model as its user does."""
    named = {k: v for k, v in inputs.items() if k}
    return model(*(v for k, v in inputs.items() if not k), **named)


def tensors(output: Any, name: str = "") -> dict[str, torch.Tensor]:
    """Every tensor in an output, by where it is in it."""
    if isinstance(output, torch.Tensor):
        return {name: output}
    if isinstance(output, dict):
        items: Any = output.items()
    else:
        items = enumerate(output) if isinstance(output, (tuple, list)) else ()
    found: dict[str, torch.Tensor] = {}
    for key, value in items:
        found |= tensors(value, f"{name}.{key}")
    return found
