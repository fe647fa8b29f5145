"""Which blocks of two models are joined, and by which layer: lists of numbers, nothing else."""

from collections.abc import Iterator
from typing import NamedTuple


class Pair(NamedTuple):
    """One way from a model to a larger one.

    Attributes:
        front: the last block of the front that runs.
        end: the block of the end that it is paired with.
        layer: the number of the layer between them.
    """

    front: int
    end: int
    layer: int


def window_pairs(depth: int, kernel: int, stride: int) -> list[Pair]:
    """Pairs of blocks inside of a window that slides over two models of equal depth.

    Each pair has the layer of the first window that holds it; a window without new pairs has none.
    """
    found: dict[tuple[int, int], int] = {}
    layer = 0
    for start in range(0, depth, stride):
        numbers = range(start, min(start + kernel, depth))
        new = [(j, k) for j in numbers for k in numbers if (j, k) not in found]
        found.update(dict.fromkeys(new, layer))
        layer += bool(new)
    return [Pair(j, k, layer) for (j, k), layer in found.items()]


def nearest_pairs(front: int, end: int) -> list[Pair]:
    """Each block of the end with the nearest block of a front of another depth."""
    return [Pair(e * front // end, e, e * front // end) for e in range(end)]


def multiple_pairs(front: int, end: int) -> list[Pair]:
    """Each block of the front with the last of those that it stands for in a deeper end."""
    return [Pair(j, (j + 1) * (end // front) - 1, j) for j in range(front)]


def numbered(pairs: list[Pair], each: bool) -> list[Pair]:
    """The same with layers counted from zero without gaps; with `each` every pair has its own."""
    keys = [i if each else pair.layer for i, pair in enumerate(pairs)]
    order = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return [pair._replace(layer=order[key]) for pair, key in zip(pairs, keys, strict=True)]


def by_stage(stages: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """The first block of each stage, and how many it has."""
    for stage in range(1 + max(stages, default=-1)):
        yield stages.index(stage), stages.count(stage)
