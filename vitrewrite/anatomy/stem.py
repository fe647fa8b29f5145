"""The way from the image to the first block: which of its tokens are patches, and which are not.

Every token gets a number where it is made, patches and parameters alike, and the numbers are sent
through whatever happens to the tokens up to the first block: they may be joined, cut and joined
again. What stands in front of the patches there is the prefix, what stands behind them the suffix.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .flow import Flow, Op
from .kinds import ADDS, JOINS, is_conv, strip
from .rows import compact, numbers_of
from .trunk import Sets
from .values import concrete


@dataclass
class Stem:
    """The way from the image to the first block.

    Attributes:
        prefix: parameters put before the patches, with how many tokens each is.
        suffix: those put behind them.
        marks: the ops that add parameters (tokens, positions): no part of the patch embedding.
    """

    prefix: list[tuple[str, int]]
    suffix: list[tuple[str, int]]
    marks: list[Op]


def find_stem(start: Op, flow: Flow, sets: Sets) -> Stem:
    """What is between the layer that makes the patches and the first block.

    Args:
        start: the stream as the first block gets it.
        flow: the whole model.
        sets: of its ops.
    """
    behind = _behind_patches(start, flow)
    marks = [op for op in behind if op.name in ADDS | JOINS and _is_mixed(op, sets)]
    owners = _owners(start, [m for m in marks if m.name in JOINS and len(m.shape) == 3], sets)
    first = next((i for i, name in enumerate(owners) if not name), len(owners))
    last = next((i for i, name in enumerate(reversed(owners)) if not name), 0)
    suffix = owners[len(owners) - last :] if last else []
    return Stem(_runs(owners[:first]), _runs(suffix), marks)


def _behind_patches(start: Op, flow: Flow) -> list[Op]:
    """The ops from the last convolution on, or all of them without one."""
    ops = list(flow.members(start.before))
    layer = next((op for op in reversed(ops) if is_conv(op)), None)
    return ops if layer is None else [op for op in ops if op.before & layer.bit]


def _is_mixed(op: Op, sets: Sets) -> bool:
    """Whether something of the image meets something that is not."""
    return len({bool(i.before & sets.images) for i in op.inputs}) == 2


def _owners(start: Op, joins: list[Op], sets: Sets) -> list[str]:
    """The parameter that each token at `start` is of, in order; empty for patches.

    Nothing is told where the tokens could not be followed.
    """
    known: dict[Op, torch.Tensor] = {}
    names: list[str] = []
    for op in joins:
        axis = _axis(op)
        for source in op.inputs:
            of_image = bool(source.before & sets.images)
            if source in known or (of_image and any(k.after & source.bit for k in known)):
                continue  # made of tokens that have their numbers
            owned = ["" for _ in range(source.shape[axis])] if of_image else _names(source, axis)
            lengths = [n if i == axis else 1 for i, n in enumerate(source.shape)]
            numbers = torch.arange(len(names), len(names) + len(owned), device="cpu")
            known[source] = numbers.reshape(lengths).expand(source.shape)
            names += owned
    found = numbers_of(start, known) if known else None
    if found is None or not isinstance(found.index, torch.Tensor):
        return []
    order = compact(found.index)
    if sum(length > 1 for length in order.shape) != 1:
        return []
    return [names[i] for i in order.flatten().tolist()]


def _axis(join: Op) -> int:
    given = join.node.kwargs.get("dim", join.node.args[1] if len(join.node.args) > 1 else 0)
    return int(concrete(given)) % len(join.shape)


def _names(op: Op, axis: int) -> list[str]:
    """The parameter behind each of the tokens that do not come from the image."""
    count, source = op.shape[axis], strip(op)
    if source.name in JOINS and len(source.inputs) > 1:
        inner = _axis(source)
        names = [name for i in source.inputs for name in _names(i, inner)]
        if len(names) == count:
            return names
    while source.name != "get_attr" and source.inputs:
        source = strip(source.inputs[0])
    return [source.path] * count


def _runs(names: list[str]) -> list[tuple[str, int]]:
    """Equal names next to each other, with how often they stand there."""
    runs: list[tuple[str, int]] = []
    for name in names:
        if runs and runs[-1][0] == name:
            runs[-1] = name, runs[-1][1] + 1
        else:
            runs.append((name, 1))
    return runs
