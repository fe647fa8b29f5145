"""What a class says of itself in one line: where in the model its modules are, and how many heads.

Said of attentions, blocks and the model; what an MLP or a projection is, its name tells.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from ..tracing.leaves import is_inserted
from ..tracing.nodes import operand
from ..tracing.notes import VALUE
from ..tracing.unit import Unit

_SUMS = (operator.matmul, torch.matmul, torch.bmm, torch.einsum, "matmul")
MOST_PARTS = 4
"""More runs of numbers than that are told by the constructor of the list alone."""
_SOFTMAX = (F.softmax, torch.softmax, "softmax")
_ATTENDS = (F.scaled_dot_product_attention, *_SOFTMAX)
_PRODUCTS = (torch.bmm, torch.baddbmm, torch.matmul, operator.matmul)
_FLAT = 12  # nodes between scores and the view that puts heads beside the batch


def told(units: Sequence[Unit], paths: Sequence[str], everywhere: Iterable[str]) -> str:
    """One line, or nothing.

    Args:
        units: the modules of a class.
        paths: where they are.
        everywhere: the paths of all modules.
    """
    heads = [_heads(unit) for unit in units]
    if any(heads):
        owners = places([path.rpartition(".")[0] for path in paths], everywhere)
        return f"Attention{f' of {owners}' if owners else ''}{_range(heads, ', {} heads')}."
    where = places(paths, everywhere)
    return f"{where}{_range([_width(u) for u in units], ', {} wide')}." if where[-1:] == "]" else ""


def _heads(unit: Unit) -> int | None:
    """Of the attention that a module computes, if it does."""
    graph = unit.template and unit.template.graph
    for node in graph.nodes if graph else ():
        child = unit._modules.get(str(node.target)) if node.op == "call_module" else None
        attends = node.target in _ATTENDS or isinstance(child, torch.nn.Softmax)
        if attends or (child is not None and is_inserted(child) and _weighs(node)):
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


def _weighs(node: fx.Node) -> bool:
    """Whether values are summed by what a module yields, which is a softmax of another kind."""
    return any(user.target in _SUMS and user.args[0] is node for user in node.users)


def _range(numbers: Sequence[int | None], text: str) -> str:
    found = sorted({n for n in numbers if n})
    spread = [str(found[0]), f"{found[0]} to {found[-1]}"][len(found) > 1] if found else ""
    return text.format(spread) if found else ""


def _width(unit: Unit) -> int | None:
    """Of the first norm of a block."""
    norms = (m for m in unit.modules() if isinstance(m, torch.nn.LayerNorm))
    return next((m.normalized_shape[-1] for m in norms), None)


def places(paths: Sequence[str], everywhere: Iterable[str] = ()) -> str:
    """Paths that differ in numbers as one, `blocks[:3].attn`; nothing if they are not alike.

    Args:
        paths: of modules.
        everywhere: the paths of all modules: `[*]` stands for all numbers that there are.
    """
    shapes = {re.sub(r"\.\d+(?=\.|$)", "[#]", path) for path in paths}
    if len(shapes) != 1:
        return ""
    (shape,) = shapes
    heads = [_heads_of(path) for path in paths]
    told = list(filter(None, map(_last_number, everywhere)))
    for column in zip(*heads, strict=True):
        owners = {owner for owner, _ in column}
        there = {number for owner, number in told if owner in owners}
        numbers = {number for _, number in column}
        shape = shape.replace("[#]", f"[{_numbers(numbers, there)}]", 1)
    return shape


def _heads_of(path: str) -> list[tuple[str, int]]:
    """The numbers in a path, each with what stands in front of it."""
    return [(path[: m.start()], int(m[1])) for m in re.finditer(r"\.(\d+)(?=\.|$)", path)]


def _last_number(path: str) -> tuple[str, int] | None:
    """The list that a module is an item of, and which item."""
    owner, _, number = path.rpartition(".")
    return (owner, int(number)) if owner and number.isdigit() else None


def _numbers(numbers: set[int], there: set[int]) -> str:
    """`*`, `3`, `:3`, `4:6, 7:`: some of the numbers that there are."""
    if numbers == there and len(there) > 1:
        return "*"
    last, parts = max(there | numbers), []
    for first in sorted(n for n in numbers if n - 1 not in numbers):
        stop = next(n for n in range(first + 1, last + 2) if n not in numbers)
        span = f"{first or ''}:{'' if stop > last else stop}"
        parts.append(str(first) if stop == first + 1 else span)
    if len(parts) <= MOST_PARTS:
        return ", ".join(parts)
    first, second, *_ = sorted(numbers)
    regular = numbers == set(range(first, last + 1, second - first))
    return f"{first or ''}::{second - first}" if regular else "..."
