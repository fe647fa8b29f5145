"""Which token stands where in the groups that an attention works in, such as shifted windows.

Nothing is known of how windows are made: the tokens are numbered where the attention's norm yields
them, and the numbers are read where its first layer takes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..anatomy.sites import Attention, Block, Linear, Place
from ..tracing.unit import Unit
from .taps import observe


@dataclass(frozen=True)
class Located:
    """The tokens of one image in the order in which groups of them attend among themselves.

    Attributes:
        tokens: [groups * positions], the number of the token that is there, -1 for padding.
        grid: height and width of the tokens, if they lie on a map.
    """

    tokens: torch.Tensor
    grid: tuple[int, int] | None


def located(
    root: nn.Module, block: Block, attention: Attention, inputs: tuple[Any, ...]
) -> Located | None:
    """Where the tokens of an image are in an attention of a captured model.

    Args:
        root: the model as it was captured.
        block: that the attention is of.
        attention: one over tokens.
        inputs: one image.

    Returns:
        None where what the first layer takes is not just the tokens in another order.
    """
    first = attention.qkv or attention.k
    if first is None:
        return None
    source = _source(root, first)
    starts = [n.call for n in block.norms if n.path == block.norm1] + [block.input]
    found = (_read(root, block, start, source, first, inputs) for start in starts if source)
    return next((each for each in found if each is not None), None)


def _source(root: nn.Module, layer: Linear) -> Place | None:
    """What a layer takes."""
    unit = dict(root.named_modules()).get(layer.call.unit)
    if not isinstance(unit, Unit) or unit.template is None:
        return None
    node = next(n for n in unit.template.graph.nodes if n.name == layer.call.node)
    return Place(layer.call.unit, str(node.args[0]))


def _read(
    root: nn.Module,
    block: Block,
    start: Place,
    source: Place | None,
    layer: Linear,
    inputs: tuple[Any, ...],
) -> Located | None:
    assert source is not None
    shapes: list[torch.Size] = []

    def number(value: torch.Tensor) -> torch.Tensor:
        shapes.append(value.shape)
        return _numbered(value, block.dim)

    with torch.no_grad():
        _, seen = observe(root, inputs, [source], {start: number})
    if not shapes or source not in seen:
        return None
    given = seen[source].float()
    rows = (given.movedim(1, -1) if layer.axis == 1 else given)[..., 0].flatten()
    sides = _sides(shapes[-1], block.dim)
    known = rows[rows.abs() > 1e-3]
    tokens = known.round().long() - 1
    whole = torch.arange(math.prod(sides))
    if known.shape != whole.shape or not torch.equal(tokens.sort()[0], whole):
        return None
    if (known - known.round()).abs().max() > 1e-3:
        return None
    return Located(rows.round().long() - 1, (sides[0], sides[1]) if len(sides) == 2 else None)


def _sides(shape: Sequence[int], dim: int) -> list[int]:
    """Lengths of a value that lie over its tokens."""
    return list(shape[1:-1] if shape[-1] == dim else shape[2:])


def _numbered(value: torch.Tensor, dim: int) -> torch.Tensor:
    """A value with the number of each token, from one, in place of all that it has."""
    sides = _sides(value.shape, dim)
    numbers = torch.arange(1.0, math.prod(sides) + 1).view(sides)
    numbers = numbers[..., None] if value.shape[-1] == dim else numbers[None]
    return numbers.expand_as(value).contiguous()
