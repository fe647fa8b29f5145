"""Batches in an order that depends on a seed alone: not on workers, processes or interruptions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Sampler

from ..errors import DataError
from .images import Images, Key
from .listing import raise_together
from .seeding import mixed


class Batch(NamedTuple):
    """Images (B, C, H, W) with labels (B,), or (B, H, W) for maps; labels of padding are -1."""

    images: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return Batch(*(t.to(device, non_blocking=True) for t in self))


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

    def __len__(self) -> int:
        return len(self.steps) * self.share.pieces

    def __iter__(self) -> Iterator[list[Key]]:
        per_epoch = self.count // self.batch
        known, order = -1, [0]
        for step in self.steps:
            epoch, place = divmod(step, per_epoch)
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


def shuffled(count: int, seed: int) -> list[int]:
    """The numbers below `count` in an order of their own."""
    order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return order


def training_batches(images: Images, order: TrainingOrder, workers: int = 0) -> Iterator[Batch]:
    """Micro-batches for training.

    Raises:
        DataError: VR742 or VR743 for an image that cannot be read, or a label outside the head.
    """
    return _loaded(images, order, workers)


def evaluation_batches(
    images: Images, batch: int, share: ProcessShare | None = None, workers: int = 0
) -> Iterator[Batch]:
    """This process's part of all images; labels of padding are -1.

    Raises:
        DataError: as `training_batches`.
    """
    return _loaded(images, EvaluationOrder(len(images), batch, share or ProcessShare()), workers)


def batches(
    images: Images, batch: int, *, seed: int | None = None, limit: int | None = None
) -> Iterator[Batch]:
    """Images without augmentation: in order or, with a seed, shuffled; at most `limit` of them.

    Raises:
        DataError: as `training_batches`.
    """
    order = list(range(len(images))) if seed is None else shuffled(len(images), seed)
    keys = [Key(index) for index in order[:limit]]
    return _loaded(images, [keys[i : i + batch] for i in range(0, len(keys), batch)], 0)


def _loaded(images: Images, order: Any, workers: int) -> Iterator[Batch]:
    loader = DataLoader(
        images, batch_sampler=order, collate_fn=_collate, num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # otherwise starting it draws from the global one
    )  # fmt: skip
    for found in loader:
        if isinstance(found, list):
            raise_together(found)
        yield found


def _collate(samples: list[Any]) -> Batch | list[DataError]:
    """A batch, or all that is wrong with it."""
    errors = [sample for sample in samples if isinstance(sample, DataError)]
    if errors:
        return errors
    images, labels = zip(*samples, strict=True)
    maps = isinstance(labels[0], torch.Tensor)
    return Batch(torch.stack(images), torch.stack(labels) if maps else torch.tensor(labels))
