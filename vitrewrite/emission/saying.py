"""What a class says of itself in one line: where in the model its modules are, and how many heads.

Said of attentions, blocks and the model; what an MLP or a projection is, its name tells.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from ..tracing.unit import Unit

_ATTENDS = (F.scaled_dot_product_attention, F.softmax, torch.softmax, "softmax")


def told(units: Sequence[Unit], graphs: Sequence[fx.Graph], paths: Sequence[str]) -> str:
    """One line, or nothing.

    Args:
        units: the modules of a class.
        graphs: its programs.
        paths: where the modules are.
    """
    where = places(paths)
    heads = {u.settings.get("num_heads") for u in units}
    if graphs and heads != {None} and any(_attends(n, units[0]) for n in graphs[0].nodes):
        owners = places([path.rpartition(".")[0] for path in paths])
        return f"Attention of {owners or 'the model'}, {_range(heads)} heads."
    if where.endswith("]"):
        return f"{where}, {_range({_width(u) for u in units})} wide." if where else ""
    return ""


def _attends(node: fx.Node, unit: Unit) -> bool:
    if node.op == "call_module":
        child = unit._modules.get(str(node.target))
        return isinstance(child, torch.nn.Softmax)
    return node.target in _ATTENDS


def _range(numbers: set[Any]) -> str:
    found = sorted(n for n in numbers if n is not None)
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def _width(unit: Unit) -> int | None:
    """Of the first norm of a block."""
    norms = (m for m in unit.modules() if isinstance(m, torch.nn.LayerNorm))
    return next((m.normalized_shape[-1] for m in norms), None)


def places(paths: Sequence[str]) -> str:
    """Paths that differ in numbers as one, `blocks[*].attn`; nothing if they are not alike."""
    shapes = {re.sub(r"\.\d+(?=\.|$)", "[#]", path) for path in paths}
    if len(shapes) != 1:
        return ""
    (shape,) = shapes
    columns = list(zip(*(re.findall(r"\.(\d+)(?=\.|$)", path) for path in paths), strict=True))
    for column in columns:
        numbers = sorted({int(n) for n in column})
        one = str(numbers[0]) if len(numbers) == 1 and len(paths) == 1 else "*"
        shape = shape.replace("[#]", f"[{one}]", 1)
    return shape
