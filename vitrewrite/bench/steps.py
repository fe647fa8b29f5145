"""What is measured: a forward, and a training step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..editing import costs
from ..tracing import tree
from ..tracing.unit import on_meta
from .contenders import Contender

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Forward:
    """Inference: eval mode, no gradients."""

    contender: Contender
    inputs: Tensors

    def __call__(self) -> None:
        """One step."""
        with torch.no_grad():
            self.contender.call(*self.inputs)


@dataclass(frozen=True)
class TrainingStep:
    """Forward in training mode, a loss, and gradients of what is trained; no optimiser.

    Attributes:
        probes: fixed and random, one like each output; the loss is the mean of output x probe.
    """

    contender: Contender
    inputs: Tensors
    probes: Tensors

    def loss(self) -> torch.Tensor:
        """The scalar that is minimised."""
        return _loss(self.contender.call(*self.inputs), self.probes)

    def __call__(self) -> None:
        """One step; the gradients are dropped, so that each starts from the same memory."""
        self.loss().backward()  # type: ignore[no-untyped-call]
        for parameter in self.contender.trained:
            parameter.grad = None

    @property
    def living(self) -> list[torch.Tensor]:
        """What is in memory anyway, whether autograd saves it or not."""
        module = self.contender.module
        return [*module.parameters(), *module.buffers(), *self.inputs, *self.probes]


def training_steps(found: list[Contender], inputs: Tensors) -> dict[str, TrainingStep]:
    """The training step of each model that trains anything."""
    return {c.name: TrainingStep(c, inputs, _probes(c.module, inputs)) for c in found if c.trained}


def training_macs(module: nn.Module, example: Tensors) -> int:
    """Multiply-accumulates per image of a training step, forward and backward, counted on meta.

    Args:
        module: the model; what requires gradients counts as trained.
        example: its inputs, of batch size one.
    """
    # Two images: batch norm does not train on one.
    inputs = tuple(v.new_empty((2, *v.shape[1:]), device="meta") for v in example)
    twin = on_meta(module).train()
    probes = _probes(twin, inputs)
    with FlopCounterMode(display=False, custom_mapping={**costs.MORE}) as counter:
        _loss(twin(*inputs), probes).backward()  # type: ignore[no-untyped-call]
    return costs.counted(counter.flop_counts["Global"]).macs // 2


def _probes(module: nn.Module, inputs: Tensors) -> Tensors:
    with torch.no_grad():
        outputs = _outputs(module.train()(*inputs))
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(v.shape, generator=generator).to(v) for v in outputs)


def _loss(output: Any, probes: Tensors) -> torch.Tensor:
    found = [(v * probe).mean() for v, probe in zip(_outputs(output), probes, strict=True)]
    return torch.stack(found).sum()


def _outputs(output: Any) -> list[torch.Tensor]:
    return [v for v in tree.leaves(output) if v.is_floating_point()]
