"""Structural pruning: which rows and columns of a model its side network starts with.

As in the code of Sung et al., NeurIPS 2022: one walk through the network. A matrix keeps the
columns of the rows that the one before it keeps, and of its own rows those with the largest L1
norm. So the stream is not the same channels everywhere, as what adds to it keeps different ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from vitrewrite.authoring import OwnLayers

if TYPE_CHECKING:
    from . import SideBlock


@dataclass(frozen=True)
class Kept:
    """The rows that the matrices of a block keep, in ascending order; `before` are its columns."""

    before: torch.Tensor
    qkv: torch.Tensor
    proj: torch.Tensor
    fc1: torch.Tensor
    fc2: torch.Tensor


def count(rows: int, reduction: int) -> int:
    """How many of some rows stay."""
    return max(1, rows - round((1 - 1 / reduction) * rows))


def best(importance: torch.Tensor, reduction: int, groups: int = 1) -> torch.Tensor:
    """The rows with the largest L1 norms, as many in each group; of equal ones the last."""
    scores = importance.abs().sum(1).view(groups, -1)
    stays = count(scores.shape[1], reduction)
    order = torch.sort(scores, dim=1, stable=True).indices[:, scores.shape[1] - stays :]
    first = torch.arange(groups)[:, None] * scores.shape[1]
    found: torch.Tensor = (order + first).flatten().sort().values
    return found


def walked(
    origin: OwnLayers, blocks: Sequence[str], reduction: int, heads: int = 1
) -> dict[str, Kept]:
    """What every block keeps.

    Args:
        origin: the model.
        blocks: the roles of its blocks, in order.
        reduction: how many times narrower the side network is.
        heads: groups of rows of queries, keys and values that keep as many each.
    """
    found: dict[str, Kept] = {}
    before = best(origin.importance("patch_embed"), reduction)
    for block in blocks:
        parts = [origin.importance(f"{block}.attn.{part}")[:, before] for part in "qkv"]
        qkv = best(parts[0] * parts[1] * parts[2], reduction, heads)
        proj = best(origin.importance(f"{block}.attn.proj")[:, qkv], reduction)
        fc1 = best(origin.importance(f"{block}.mlp.fc1")[:, proj], reduction)
        fc2 = best(origin.importance(f"{block}.mlp.fc2")[:, fc1], reduction)
        found[block] = Kept(before, qkv, proj, fc1, fc2)
        before = fc2
    return found


def cut(side: SideBlock, origin: OwnLayers, block: str, own: Kept) -> None:
    """Gives a side block what a block of the model keeps."""
    qkv = [(f"{block}.attn.{part}", own.qkv) for part in "qkv"]
    norm(side.norm1, origin, f"{block}.norm1", own.before)
    linear(side.attn.qkv, origin, qkv, own.before)
    linear(side.attn.proj, origin, [(f"{block}.attn.proj", own.proj)], own.qkv)
    norm(side.norm2, origin, f"{block}.norm2", own.proj)
    linear(side.mlp.fc1, origin, [(f"{block}.mlp.fc1", own.fc1)], own.proj)
    linear(side.mlp.fc2, origin, [(f"{block}.mlp.fc2", own.fc2)], own.fc1)


def norm(layer: nn.LayerNorm, origin: OwnLayers, role: str, rows: torch.Tensor) -> None:
    """Gives a norm some channels of one of the model."""
    weight = origin.weight(role)
    layer.weight.copy_(weight[rows.to(weight.device)])
    layer.bias.copy_(origin.bias(role)[rows.to(weight.device)])


def linear(
    layer: nn.Linear,
    origin: OwnLayers,
    parts: list[tuple[str, torch.Tensor]],
    columns: torch.Tensor,
) -> None:
    """Gives a linear layer some rows of layers of the model, one after the other, and columns."""
    weights, biases = [], []
    for role, rows in parts:
        weight = origin.weight(role).flatten(1)
        place = rows.to(weight.device)
        weights.append(weight[place][:, columns.to(weight.device)])
        biases.append(origin.bias(role)[place])
    layer.weight.copy_(torch.cat(weights))
    layer.bias.copy_(torch.cat(biases))
