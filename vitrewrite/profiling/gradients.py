"""Sums of squared gradients, without a second copy of the gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from ..errors import ProfileError
from ..tasks import logits


def cross_entropy(output: Any, labels: torch.Tensor, seed: int) -> torch.Tensor:
    """The mean over a batch of -log p(label)."""
    return nn.functional.cross_entropy(logits(output), labels)


def squared_gradients(
    model: nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    *,
    per_sample: bool,
    names: Sequence[str],
    loss: Callable[[Any, torch.Tensor, int], torch.Tensor] = cross_entropy,
) -> dict[str, torch.Tensor]:
    """Sums of squared gradients of a loss, by parameter name.

    Published: one sample per step. As released: one batch per step, the gradient of the batch's
    mean loss. The two differ, a sum of squares or a square of means.

    Each gradient is squared as soon as it is there and then dropped, so that memory holds the sums,
    in float32, instead of all gradients.

    Args:
        model: in eval mode, so that nothing is dropped and the result is not random.
        batches: pairs of images and labels.
        per_sample: whether each sample is a step of its own.
        names: the parameters to measure.
        loss: of an output and labels; the number of samples before seeds what it draws.

    Raises:
        ProfileError: VR762 for a loss that is not finite, VR764 for a parameter without gradient,
            VR765 without any batch.
    """
    parameters = dict(model.named_parameters())
    wanted = {name: parameters[name] for name in names}
    sums = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in wanted.items()}
    count = 0
    with _squaring(model, wanted, sums) as seen:
        for images, labels in batches:
            size = 1 if per_sample else len(labels)
            parts = (torch.split(tensor, size) for tensor in (images, labels))
            for x, y in zip(*parts, strict=True):
                seen.clear()
                value = loss(model(x), y, count)
                if not bool(value.isfinite()):
                    raise ProfileError("VR762", f"the loss is {value.item()} after {count} samples")
                if value.requires_grad:
                    value.backward()  # type: ignore[no-untyped-call]
                if left := next((n for n in wanted if n not in seen), None):
                    raise ProfileError("VR764", f"the loss does not depend on {left}")
                count += len(y)
    if not count:
        raise ProfileError("VR765", "there is no sample to measure with")
    return sums


@contextmanager
def _squaring(
    model: nn.Module, wanted: dict[str, nn.Parameter], sums: dict[str, torch.Tensor]
) -> Iterator[set[str]]:
    """Lets backward add squares to sums, and to them alone; gives the names that it reached."""
    flags = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    seen: set[str] = set()
    handles = []
    try:
        for parameter, _, _ in flags:
            parameter.requires_grad_(False).grad = None
        for name, parameter in wanted.items():
            parameter.requires_grad_()
            take = partial(_take, sums[name], name, seen)
            handles.append(parameter.register_post_accumulate_grad_hook(take))  # type: ignore[no-untyped-call]
        yield seen
    finally:
        for handle in handles:
            handle.remove()
        for parameter, flag, gradient in flags:
            parameter.requires_grad_(flag).grad = gradient


def _take(total: torch.Tensor, name: str, seen: set[str], parameter: torch.Tensor) -> None:
    assert parameter.grad is not None
    gradient = parameter.grad.float()
    total.addcmul_(gradient, gradient)
    parameter.grad = None
    seen.add(name)
