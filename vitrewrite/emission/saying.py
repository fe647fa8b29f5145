"""What a class says of itself in one line: where in the model its modules are, and how many heads.

Said of attentions, blocks and the model; what an MLP or a projection is, its name tells.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from ..tracing.nodes import operand
from ..tracing.notes import VALUE
from ..tracing.unit import Unit

_SOFTMAX = (F.softmax, torch.softmax, "softmax")
_ATTENDS = (F.scaled_dot_product_attention, *_SOFTMAX)
_PRODUCTS = (torch.bmm, torch.baddbmm, torch.matmul, operator.matmul)
_FLAT = 12  # nodes between scores and the view that puts heads beside the batch


def told(units: Sequence[Unit], paths: Sequence[str]) -> str:
    """One line, or nothing.

    Args:
        units: the modules of a class.
        paths: where they are.
    """
    heads = [_heads(unit) for unit in units]
    if any(heads):
        owners = places([path.rpartition(".")[0] for path in paths])
        return f"Attention{f' of {owners}' if owners else ''}{_range(heads, ', {} heads')}."
    where = places(paths)
    return f"{where}{_range([_width(u) for u in units], ', {} wide')}." if where[-1:] == "]" else ""


def _heads(unit: Unit) -> int | None:
    """Of the attention that a module computes, if it does."""
    graph = unit.template and unit.template.graph
    for node in graph.nodes if graph else ():
        child = unit._modules.get(str(node.target)) if node.op == "call_module" else None
        if node.target in _ATTENDS or isinstance(child, torch.nn.Softmax):
            value = VALUE.get(node.args[0])
            if isinstance(value, torch.Tensor) and value.dim() == 4:
                return int(value.shape[_axis(operand(node))])
            if node.target in _SOFTMAX and (found := _beside_batch(operand(node))):
                return found
    return None


def _axis(scores: fx.Node) -> int:
    """The dimension of heads: the second, or behind that of queries, whose number varies."""
    if scores.target not in ("view", "reshape"):
        return 1
    sizes: Any = scores.args[1] if isinstance(scores.args[1], tuple) else scores.args[1:]
    return 2 if isinstance(sizes[1], fx.Node) and isinstance(sizes[2], int) else 1


def _beside_batch(scores: fx.Node) -> int | None:
    """The heads of scores [batch * heads, queries, keys]: the number that a view multiplies by."""
    waiting, product = [scores], False
    for node in waiting:
        product = product or node.target in _PRODUCTS
        for size in node.args[1:] if node.target in ("view", "reshape") else ():
            if product and isinstance(size, fx.Node) and size.target is operator.mul:
                return next((s for s in size.args if isinstance(s, int)), None)
        waiting += [n for n in node.all_input_nodes if n not in waiting and len(waiting) < _FLAT]
    return None


def _range(numbers: Sequence[int | None], text: str) -> str:
    found = sorted({n for n in numbers if n})
    spread = [str(found[0]), f"{found[0]} to {found[-1]}"][len(found) > 1] if found else ""
    return text.format(spread) if found else ""


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
