"""The look-up table of SPViT's paper: what it counts in another way than reports do.

He et al., TPAMI 2024: the MLPs are counted for patches alone, and the two norms of a block with two
for an element; so the MACs of published nets are those of the paper.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from ..anatomy.sites import Block, Mlp
from ..rewrite.rewritten import Rewritten

if TYPE_CHECKING:
    from .spaces import Part


def unlike(rewritten: Rewritten, parts: Collection[Part]) -> int:
    """What the table has more of the layers that no search decides about; less if negative."""
    anatomy, tokens = rewritten.result.anatomy, rewritten.measures.tokens
    searched = {part.role for part in parts}
    others = anatomy.stream.prefix_tokens + anatomy.stream.suffix_tokens
    total = 0
    for block, count in zip(anatomy.blocks, tokens, strict=False):
        total += _norms(block) * block.dim * (count or 0)
        if block.mlp is not None and block.mlp.role not in searched:
            total -= others * _weights(block.mlp)
    return total


def _norms(block: Block) -> int:
    return sum(path is not None for path in (block.norm1, block.norm2))


def _weights(mlp: Mlp) -> int:
    layers = [layer for layer in (mlp.fc1, mlp.gate, mlp.fc2) if layer is not None]
    return sum(layer.in_features * layer.out_features for layer in layers)
