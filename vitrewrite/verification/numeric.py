"""Numbers behind the claims: differences between models that should be equal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..emission.realise import realise
from ..tracing.unit import duplicate

if TYPE_CHECKING:
    from ..rewrite.rewritten import Rewritten


def sample(rewritten: Rewritten, batch: int = 2, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Random inputs of the model's own shapes."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn((batch, *value.shape[1:]), generator=generator).to(value.dtype)
        for value in rewritten.result.example
    )


@contextmanager
def _frozen(*modules: nn.Module) -> Iterator[None]:
    """Without trainable parameters.

    torch multiplies a transposed [B, N, C] by a weight in one of two ways, which round differently,
    and takes `requires_grad` of the weight as a hint, also where no gradients are computed.
    """
    trained = [p for m in modules for p in m.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@torch.no_grad()
def difference(first: nn.Module, second: nn.Module, inputs: tuple[torch.Tensor, ...]) -> float:
    """Largest absolute difference of the outputs, in eval mode."""
    with _frozen(first, second):
        a, b = (tensors(m.eval()(*inputs)) for m in (first, second))
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


@torch.no_grad()
def relative(first: nn.Module, second: nn.Module, inputs: tuple[torch.Tensor, ...]) -> float:
    """Largest difference of the outputs over the largest output of the first."""
    with _frozen(first, second):
        a, b = (tensors(m.eval()(*inputs)) for m in (first, second))
    scale = max(float(x.abs().max()) for x in a) or 1.0
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True)) / scale


def tensors(value: Any, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """The tensors in an output, nested in tuples, lists and dicts, in order and in one dtype."""
    if isinstance(value, torch.Tensor):
        return [value.to(dtype)]
    items = value.values() if isinstance(value, dict) else value
    nested = isinstance(value, (dict, list, tuple))
    return [t for item in items for t in tensors(item, dtype)] if nested else []


def randomised(rewritten: Rewritten, seed: int = 0, dtype: torch.dtype | None = None) -> Rewritten:
    """A copy whose inserted parameters are all random, so that no branch is zero.

    The units of a copy keep their printed classes.
    """
    own = {id(p) for i in rewritten.result.editor.insertions for p in i.module.parameters()}
    generator = torch.Generator().manual_seed(seed)

    def parameter(old: nn.Parameter) -> nn.Parameter:
        value = old.detach()
        if id(old) in own:
            spread = 0.3 / max(old.shape[-1], 1) ** 0.5
            value = torch.randn(old.shape, generator=generator) * spread
        return nn.Parameter(value.to(dtype or value.dtype), requires_grad=old.requires_grad)

    def buffer(old: torch.Tensor) -> torch.Tensor:
        return old.to(dtype) if dtype and old.is_floating_point() else old.clone()

    root = duplicate(rewritten.module, parameter, buffer)
    result = replace(rewritten.result, root=root, editor=rewritten.result.editor.on(root))
    return replace(rewritten, module=root, result=result)


def lowering_error(rewritten: Rewritten, dtype: torch.dtype = torch.float32) -> float:
    """Relative error of the lowered model with random inserted parameters."""
    from ..rewrite.lowering import lowered_tree

    twin = randomised(rewritten, dtype=dtype)
    lowered, _ = lowered_tree(twin)
    realise(lowered)
    return relative(twin.module, lowered, tuple(v.to(dtype) for v in sample(rewritten)))


def measure_claim(rewritten: Rewritten, metric: str) -> Any:
    """The number that `identity`, `lowers` or `max_error` is about."""
    if metric == "identity":
        return difference(rewritten.base, rewritten.module, sample(rewritten))
    return lowering_error(rewritten)
