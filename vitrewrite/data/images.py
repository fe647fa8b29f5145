"""Labelled images as the model takes them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch.utils.data import Dataset

from ..errors import DataError
from ..text import first_line
from .pictures import converted, refused
from .preprocessing import Preprocessing, Transform
from .seeding import seeded

if TYPE_CHECKING:
    from PIL.Image import Image


_DURING = "repair it and go on with --resume, or remove it and start a new run"


class ImageSource(Protocol):
    """Where images come from."""

    @property
    def symbols(self) -> bool:
        """Whether the images are signs, which a mirror or a crop would change."""

    def __len__(self) -> int:
        """How many there are."""

    def load(self, index: int) -> tuple[Image, Any]:
        """An image with its label, or its map of labels; whatever goes wrong may be raised."""

    def where(self, index: int) -> str:
        """What to call an image in a message."""

    def key(self, index: int) -> str:
        """What identifies an image, without reading it."""


class Key(NamedTuple):
    """Which image to load; a seed draws its augmentation, `real` is false for padding."""

    place: int
    seed: int | None = None
    real: bool = True


class Images(Dataset[Any]):
    """Some images of a source.

    What cannot be read is returned as the error it is, because exceptions of ours do not survive
    the way back from a worker process.
    """

    def __init__(
        self,
        source: ImageSource,
        indices: Sequence[int],
        wanted: Preprocessing,
        outputs: int | None,
    ) -> None:
        self.source, self.indices, self.outputs = source, tuple(indices), outputs
        self.mode = wanted.mode
        self.plain: Transform = wanted.transform(whole=source.symbols)
        self.random: Transform = wanted.augmentation(whole=source.symbols)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: Key) -> tuple[torch.Tensor, Any] | DataError:
        index = self.indices[key.place]
        try:
            image, label = self.source.load(index)
            return self._sample(index, converted(image, self.mode), label, key)
        except DataError as error:
            return error
        except Exception as error:  # Pillow raises many kinds, and data sets of others any kind
            return refused(self.source.where(index), first_line(error), _DURING)

    def _sample(
        self, index: int, image: Image, label: Any, key: Key
    ) -> tuple[torch.Tensor, int | torch.Tensor]:
        """The image as the model takes it, and its label, or -1 for padding."""
        if label < 0 or (self.outputs is not None and label >= self.outputs):
            raise self.outside(index, label)
        return self._transformed(image, key.seed), label if key.real else -1

    def outside(self, index: int, label: int) -> DataError:
        """VR743, for a label that the head has no output for."""
        return DataError(
            "VR743",
            f"the label {label} of {self.source.where(index)} is outside the head",
            notes=[f"valid: 0..{self.outputs - 1}"] if self.outputs else [],
        )

    def _transformed(self, image: Image, seed: int | None) -> torch.Tensor:
        if seed is None:
            return self.plain(image)
        with seeded(seed):
            return self.random(image)

    def joined(self, other: Images) -> Images:
        """These images and others of the same source."""
        assert self.source is other.source
        joined = object.__new__(Images)
        joined.__dict__.update(self.__dict__, indices=(*self.indices, *other.indices))
        return joined


@dataclass(frozen=True)
class Data:
    """Images to train on and images to measure on.

    Attributes:
        name: what `data=` says.
        classes: names by label; empty if the source does not say.
        maps: whether each image has a map of labels, rather than one label.
    """

    name: str
    train: Images
    val: Images
    classes: tuple[str, ...]
    maps: bool = False

    @property
    def fingerprint(self) -> str:
        """Identifies names, labels and split of the images, without reading them.

        Contents are left out, so that a run can go on when a broken image was repaired.
        """
        digest = hashlib.blake2b(digest_size=20)
        for images in (self.train, self.val):
            digest.update(f"{len(images)}\n".encode())
            for index in images.indices:
                digest.update(f"{images.source.key(index)}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def check_head(self, outputs: int) -> None:
        """Whether a head with so many outputs can tell the classes apart.

        Raises:
            DataError: VR743 if it has fewer outputs than there are classes.
        """
        if len(self.classes) > outputs:
            raise DataError(
                "VR743",
                f"'{self.name}' has {len(self.classes)} classes and the head {outputs} outputs",
                suggestion=f"give num_{'labels' if self.maps else 'classes'}={len(self.classes)}",
            )
        for images in (self.train, self.val):
            images.outputs = outputs
