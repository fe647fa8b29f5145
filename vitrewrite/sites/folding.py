"""Layers of the form `weight * f(x) + bias`: where their numbers are, and how they change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..anatomy.sites import Place
from ..editing.editor import Editor, join
from ..tracing.unit import Unit

_OPERANDS: Mapping[Any, tuple[int, int]] = {
    F.linear: (1, 2), F.conv1d: (1, 2), F.conv2d: (1, 2), F.conv3d: (1, 2),
    F.layer_norm: (2, 3), F.group_norm: (2, 3), F.batch_norm: (3, 4), F.instance_norm: (3, 4),
}  # fmt: skip
"""Which arguments are weight and bias."""
_BIASES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers that a bias can be given to."""


def bias_of(editor: Editor, place: Place, layer: str) -> str | None:
    """The name of the bias that a call of a layer adds, or would if there were one.

    None if the weight is not used as it is, or if there is no bias and none can be made.
    """
    node = editor.node(place)
    if node.op != "call_module":
        names = [_name(place.unit, node, operand) for operand in _operands(node)]
        return names[1] if names[:1] == [f"{layer}.weight"] else None
    if join(place.unit, str(node.target)) != layer:
        return None
    module = editor.root.get_submodule(layer)
    if isinstance(module, Unit):
        output = next(n for n in reversed(editor.graph(layer).nodes) if n.op == "output")
        return bias_of(editor, Place(layer, output.args[0].name), layer)
    has = module._parameters.get("weight") is not None
    has = has and module._parameters.get("bias") is not None
    return f"{layer}.bias" if has or isinstance(module, _BIASES) else None


def _operands(node: fx.Node) -> list[Any]:
    found = _OPERANDS.get(node.target, ())
    names = ("weight", "bias")
    return [
        node.args[i] if i < len(node.args) else node.kwargs.get(n)
        for i, n in zip(found, names, strict=False)
    ]


def _name(unit: str, node: fx.Node, operand: Any) -> str | None:
    """The parameter that an operand is."""
    is_read = isinstance(operand, fx.Node) and operand.op == "get_attr"
    return join(unit, str(operand.target)) if is_read else None


def change(
    tensor: torch.Tensor,
    rows: Sequence[tuple[int, int]],
    scale: torch.Tensor | None,
    add: torch.Tensor | None,
) -> None:
    """`tensor = scale * tensor + add` on ranges of its rows, in place.

    Args:
        tensor: [rows, ...].
        rows: half-open ranges, which the numbers are for in order.
        scale: one number for each row.
        add: one for each row, or as many as a row has.
    """
    first = 0
    for start, stop in rows:
        taken, piece = slice(first, first + stop - start), tensor[start:stop]
        if scale is not None:
            factors = scale[taken].detach().to(tensor.dtype)
            piece *= factors.view(-1, *[1] * (tensor.dim() - 1))
        if add is not None:
            piece += add[taken].detach().to(tensor.dtype).view_as(piece)
        first = taken.stop


class Affine(nn.Module):
    """What a norm does behind its statistics: `weight * x + bias`."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of x [..., channels]."""
        return x * self.weight if self.bias is None else x * self.weight + self.bias


def matrix(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """A weight [out, ...] and bias as a linear layer on the same memory."""
    rows = weight.detach().flatten(1)
    layer = nn.Linear(rows.shape[1], rows.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(rows, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer
