"""Which known model a checkpoint looks like, for messages: told by depth, width and a few names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

import torch

_BLOCK = re.compile(r"(?:^|\.)(?:blocks|layers?)\.(\d+)\.(?!blocks\b|downsample\b)")
_STAGE = re.compile(r"(?:^|\.)(?:layers|stages)\.(\d+)\.blocks\.(\d+)\.")
_PLAIN = {
    (12, 192): "vit_tiny", (12, 384): "vit_small", (12, 768): "vit_base",
    (24, 1024): "vit_large", (40, 1408): "vit_giant",
}  # fmt: skip
_STAGED: dict[tuple[tuple[int, ...], int], str] = {
    ((2, 2, 6, 2), 96): "swin_tiny", ((2, 2, 18, 2), 96): "swin_small",
    ((2, 2, 18, 2), 128): "swin_base",
}  # fmt: skip


def looks_like(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """A model in words, with the name of a known one of that depth and width.

    Args:
        tensors: by the names of timm, of Hugging Face, or of a training script.
    """
    staged = {found.groups() for found in map(_STAGE.search, tensors) if found}
    stages = Counter(int(stage) for stage, _ in staged)
    if stages:
        depths = tuple(count for _, count in sorted(stages.items()))
        width = _width(tensors)
        known = _STAGED.get((depths, width or 0))
        return f"a model of {len(depths)} stages of {depths} blocks{_named(known)}"
    blocks = {found[1] for found in map(_BLOCK.search, tensors) if found}
    width = _width(tensors)
    if not blocks or width is None:
        return None
    known = _PLAIN.get((len(blocks), width))
    return f"a model of {len(blocks)} blocks of width {width}{_named(known)}"


def _named(known: str | None) -> str:
    return f", as '{known}' is" if known else ""


def _width(tensors: Mapping[str, torch.Tensor]) -> int | None:
    """The channels that the first norm of a block is over."""
    norms = (v for k, v in tensors.items() if "norm" in k and _BLOCK.search(k) and v.dim() == 1)
    first = next(iter(norms), None)
    if first is None:
        first = next((v for k, v in tensors.items() if "norm" in k and v.dim() == 1), None)
    return None if first is None else len(first)
