"""What a search found, as convolutions with weights of their own, and what tensors are called."""

from typing import Any

import torch
from torch import nn

from vitrewrite.authoring import folded

from .hard import ConvBottleneck, HeadConvolution
from .search import SeparatePaths, UnifiedAttention


def bottleneck(
    conv: nn.Conv2d, up: torch.Tensor, bias: torch.Tensor | None, grid: tuple[int, int] | None
) -> ConvBottleneck:
    """The module of a convolution and of what is behind its ReLU, [C, d, 1, 1] and [C]."""
    sizes = conv.in_channels, conv.out_channels, conv.kernel_size[0]
    with torch.device("meta"):  # every tensor is put in its place
        made = ConvBottleneck(*sizes, grid, biased=bias is not None)
    last: Any = made.layers[2]
    made.layers[0] = conv
    last.weight = nn.Parameter(up)
    if bias is not None:
        last.bias = nn.Parameter(bias.detach().clone())
    return made


def folded_mixture(
    mixed: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor],
    norm: nn.Module,
    up_bias: torch.Tensor | None,
    grid: tuple[int, int] | None,
) -> ConvBottleneck:
    """The same of what heads mix, [d, C, k, k], [d] and [C, d], and a batch norm."""
    weight, bias, up = mixed
    hidden, width, kernel = weight.shape[:3]
    with torch.device("meta"):
        conv = nn.Conv2d(width, hidden, kernel, padding=kernel // 2, bias=bias is not None)
    conv.weight = nn.Parameter(weight)
    if bias is not None:
        conv.bias = nn.Parameter(bias)
    return bottleneck(folded(conv, norm), up[:, :, None, None], up_bias, grid)


def named(name: str, module: nn.Module) -> str:
    """A tensor as the method names it: `bn3x3.weight` for the norm of the kernel of 3x3."""
    for inside, word in _words(module).items():
        if f"{name}.".startswith(f"{inside}."):
            return f"{word}{name[len(inside) + (not word) :]}"
    return name


def _words(module: nn.Module) -> dict[str, str]:
    """By module in a module what names its tensors."""
    if isinstance(module, HeadConvolution):
        return {"mixture": "", "norm": f"bn{module.kernel}x{module.kernel}"}
    if isinstance(module, ConvBottleneck):
        parts = ("conv", "bn", "", "up") if module.normed else ("conv", "", "up")
        kernel = f"{module.kernel}x{module.kernel}"
        return {f"layers.{i}": f"{part}{kernel}" for i, part in enumerate(parts) if part}
    assert isinstance(module, (UnifiedAttention, SeparatePaths))
    lists = {"norms": "bn", "convs": "conv", "ups": "up"}
    kernels = list(enumerate(module.kernels))
    found = {f"{name}.{i}": f"{word}{k}x{k}" for name, word in lists.items() for i, k in kernels}
    return {**found, "mixture": "", "gates.logits": "gate_logits"}
