"""Checkpoints of the original ViT, written by JAX as `.npz`: ViT-B_16.npz and its like."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

_PLAIN = {
    "cls": "cls_token",
    "embedding/kernel": "patch_embed.proj.weight",
    "embedding/bias": "patch_embed.proj.bias",
    "Transformer/posembed_input/pos_embedding": "pos_embed",
    "Transformer/encoder_norm/scale": "norm.weight",
    "Transformer/encoder_norm/bias": "norm.bias",
    "head/kernel": "head.weight",
    "head/bias": "head.bias",
}
_IN_BLOCK = {
    "LayerNorm_0": "norm1",
    "LayerNorm_2": "norm2",
    "MultiHeadDotProductAttention_1/out": "attn.proj",
    "MlpBlock_3/Dense_0": "mlp.fc1",
    "MlpBlock_3/Dense_1": "mlp.fc2",
}
_ATTENTION = "MultiHeadDotProductAttention_1"
_BLOCK = re.compile(r"Transformer/encoderblock_(\d+)/(.+)/(kernel|bias|scale)")


def read_npz(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, under timm's names and in its layout; what it has else as it is named.

    Raises:
        OSError, ValueError, KeyError: if it is none, or holds more than numbers.
    """
    import numpy

    with numpy.load(path, allow_pickle=False) as file:
        given = {name: torch.from_numpy(file[name]) for name in file.files}
    return dict(_renamed(given))


def _renamed(given: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in given.items():
        block = _BLOCK.fullmatch(name)
        if name in _PLAIN:
            yield _PLAIN[name], _as_torch(value)
        elif block and block[2] in _IN_BLOCK:
            own = f"blocks.{block[1]}.{_IN_BLOCK[block[2]]}"
            joined = value.flatten(0, 1) if value.dim() == 3 else value  # (heads, d) of `out`
            yield f"{own}.{_leaf(block[3])}", _as_torch(joined)
        elif block and block[2] == f"{_ATTENTION}/query":
            yield f"blocks.{block[1]}.attn.qkv.{_leaf(block[3])}", _fused(given, *block.groups())
        elif not (block and block[2] in (f"{_ATTENTION}/key", f"{_ATTENTION}/value")):
            yield name, value


def _leaf(name: Any) -> str:
    return "bias" if name == "bias" else "weight"


def _as_torch(value: torch.Tensor) -> torch.Tensor:
    """A kernel with its outputs first: (in, out), or (height, width, in, out)."""
    if value.dim() == 2:
        return value.T.contiguous()
    return value.permute(3, 2, 0, 1).contiguous() if value.dim() == 4 else value


def _fused(given: dict[str, torch.Tensor], block: Any, _: Any, leaf: Any) -> torch.Tensor:
    """The rows of q, k and v; each is (in, heads, d), or (heads, d) of a bias."""
    of_block = f"Transformer/encoderblock_{block}/{_ATTENTION}"
    parts = [given[f"{of_block}/{role}/{leaf}"] for role in ("query", "key", "value")]
    if leaf == "bias":
        return torch.cat([part.flatten() for part in parts])
    return torch.cat([part.flatten(1).T for part in parts])
