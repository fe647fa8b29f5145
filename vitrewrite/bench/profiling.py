"""Profiling against a plain forward and backward of the same batch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ..profiling.gradients import squared_gradients
from ..profiling.timing import Step
from ..rewrite.rewritten import Rewritten
from ..sensitivity import candidates
from ..tracing.unit import duplicate


@dataclass(frozen=True)
class Profiling:
    """The steps on one batch of images.

    Attributes:
        steps: `base` is forward, cross-entropy and backward of all parameters; `per batch` squares
            the gradient of the batch's mean loss, `per sample` that of every image.
        copy_bytes: one float32 copy of the parameters that are profiled.
    """

    steps: dict[str, Step]
    copy_bytes: int


def profiling(rewritten: Rewritten, images: torch.Tensor) -> Profiling | None:
    """The steps, or None for a model that has nothing to profile.

    Args:
        rewritten: whose base is profiled, as sensitivities are measured before a rewrite.
        images: on the device and in the dtype.
    """
    listed = candidates(rewritten.base, rewritten.result.anatomy)
    module = _trainable(rewritten.base, images).eval()
    with torch.no_grad():
        output: Any = module(images)
    if not listed or not isinstance(output, torch.Tensor) or output.dim() != 2:
        return None
    names = list(dict.fromkeys(c.parameter for c in listed))
    labels = torch.arange(len(images), device=images.device) % output.shape[1]
    profiled = partial(squared_gradients, module, [(images, labels)], names=names)
    steps: dict[str, Step] = {
        "base": partial(_backward, module, images, labels),
        "per batch": partial(profiled, per_sample=False),
        "per sample": partial(profiled, per_sample=True),
    }
    return Profiling(steps, 4 * sum(module.get_parameter(n).numel() for n in names))


def _trainable(root: nn.Module, like: torch.Tensor) -> nn.Module:
    """A copy of a model on the device, in the dtype, all of whose parameters are trained."""

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to(like) if tensor.is_floating_point() else tensor.to(like.device)

    return duplicate(root, lambda p: nn.Parameter(cast(p)), lambda b: cast(b.clone()))


def _backward(module: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    nn.functional.cross_entropy(module(images), labels).backward()  # type: ignore[no-untyped-call]
    for parameter in module.parameters():
        parameter.grad = None
