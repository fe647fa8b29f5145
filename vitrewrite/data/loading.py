"""Batches in an order that depends on a seed alone: not on workers, processes or interruptions."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from .batch import Batch, Key
from .images import Images
from .listing import raise_together
from .seeding import mixed, shuffled

_WORKERS, _FEW = 8, 128  # processes at most; images that are not worth one
_MOST = 0.9  # of the images in memory: the rest is read in between


@dataclass(frozen=True)
class ProcessShare:
    """Which part of each step's images this process takes, and in how many pieces.

    Results do not depend on it beyond rounding: a step always sees the same images.
    """

    rank: int = 0
    processes: int = 1
    pieces: int = 1

    def of(self, items: Sequence[Any], piece: int) -> Sequence[Any]:
        """This process's part of a piece."""
        size = len(items) // (self.processes * self.pieces)
        start = (piece * self.processes + self.rank) * size
        return items[start : start + size]


class TrainingOrder(Sampler[list[Key]]):
    """Keys of micro-batches, step by step; the rest of an epoch that fills no batch is left out."""

    def __init__(
        self, count: int, batch: int, steps: range, seed: int, share: ProcessShare, *, augment: bool
    ) -> None:
        self.count, self.batch, self.steps = count, batch, steps
        self.seed, self.share, self.augment = seed, share, augment

    @property
    def per_epoch(self) -> int:
        """Steps per epoch."""
        return self.count // self.batch

    def part(self, steps: range) -> TrainingOrder:
        """Some of the steps."""
        args = self.count, self.batch, steps, self.seed, self.share
        return TrainingOrder(*args, augment=self.augment)

    def __len__(self) -> int:
        return len(self.steps) * self.share.pieces

    def __iter__(self) -> Iterator[list[Key]]:
        known, order = -1, [0]
        for step in self.steps:
            epoch, place = divmod(step, self.per_epoch)
            if epoch != known:
                known, order = epoch, shuffled(self.count, mixed(self.seed, "order", epoch))
            chosen = order[place * self.batch : (place + 1) * self.batch]
            for piece in range(self.share.pieces):
                yield [self._key(index, epoch) for index in self.share.of(chosen, piece)]

    def _key(self, index: int, epoch: int) -> Key:
        return Key(index, mixed(self.seed, "image", epoch, index) if self.augment else None)


class EvaluationOrder(Sampler[list[Key]]):
    """All images in order; padded so that every process has the same number of batches."""

    def __init__(self, count: int, batch: int, share: ProcessShare) -> None:
        padded = -(-count // share.processes) * share.processes
        keys = [Key(i % count, real=i < count) for i in range(padded)]
        mine = keys[share.rank :: share.processes]
        self.batches = [mine[i : i + batch] for i in range(0, len(mine), batch)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.batches)


def training_batches(
    images: Images, order: TrainingOrder, workers: int | None = None
) -> Iterator[Batch]:
    """Micro-batches for training.

    Args:
        images: to take them from.
        order: which, and in which order.
        workers: processes that read; by default as many as `automatic` says, from epoch to epoch.

    Raises:
        DataError: VR742 or VR743 for an image that cannot be read, or a label outside the head.
    """
    left = order.steps
    while left:
        count = automatic(images, drawn=order.augment) if workers is None else workers
        fills = workers is None and count and not order.augment and not images.resized.closed
        end = (left.start // order.per_epoch + 1) * order.per_epoch if fills else left.stop
        part = range(left.start, min(end, left.stop))
        yield from loaded(images, order.part(part), count)
        left = range(part.stop, left.stop)


def evaluation_batches(
    images: Images, batch: int, share: ProcessShare | None = None, workers: int | None = None
) -> Iterator[Batch]:
    """This process's part of all images; labels of padding are -1.

    Raises:
        DataError: as `training_batches`.
    """
    order = EvaluationOrder(len(images), batch, share or ProcessShare())
    return loaded(images, order, automatic(images, drawn=False) if workers is None else workers)


def batches(
    images: Images, batch: int, *, seed: int | None = None, limit: int | None = None
) -> Iterator[Batch]:
    """Images without augmentation: in order or, with a seed, shuffled; at most `limit` of them.

    Raises:
        DataError: as `training_batches`.
    """
    order = list(range(len(images))) if seed is None else shuffled(len(images), seed)
    keys = [Key(index) for index in order[:limit]]
    return loaded(images, [keys[i : i + batch] for i in range(0, len(keys), batch)], 0)


def automatic(images: Images, *, drawn: bool) -> int:
    """How many processes should read: none for what is in memory, or is read in no time.

    Otherwise the cores of this process but one, which trains; eight at most.
    """
    if images.source.held or len(images) < _FEW or (not drawn and images.resized.share > _MOST):
        return 0
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(0, min(_WORKERS, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1))


def loaded(images: Images, order: Any, workers: int) -> Iterator[Batch]:
    """Batches of images by their keys; of workers that are given up with the iterator.

    Raises:
        DataError: as `training_batches`.
    """
    loader = DataLoader(
        images,
        batch_sampler=order,
        collate_fn=images.collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # otherwise starting it draws from the global one
    )
    for found in loader:
        if isinstance(found, list):
            raise_together(found)
        yield found
