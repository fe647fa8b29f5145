"""Labelled images as the model takes them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.utils.data import Dataset

from ..errors import DataError
from ..text import first_line
from .augmentation import LABELS, SIGNS, Augmentation
from .batch import Batch, Key
from .memory import ImageMemory
from .pictures import converted, refused
from .preprocessing import Preprocessing, erasing
from .seeding import seeded

if TYPE_CHECKING:
    from PIL.Image import Image


_DURING = "repair it and go on with --resume, or remove it and start a new run"


class ImageSource(Protocol):
    """Where images come from."""

    @property
    def symbols(self) -> bool:
        """Whether the images are signs, which a mirror or a crop would change."""

    @property
    def held(self) -> bool:
        """Whether the images are in memory anyway."""

    def __len__(self) -> int:
        """How many there are."""

    def load(self, index: int) -> tuple[Image, Any]:
        """An image with its label, or its map of labels; whatever goes wrong may be raised."""

    def where(self, index: int) -> str:
        """What to call an image in a message."""

    def key(self, index: int) -> str:
        """What identifies an image, without reading it."""


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
        outputs: int | None = None,
    ) -> None:
        self.source, self.indices, self.outputs = source, tuple(indices), outputs
        self.wanted = wanted
        self.augmentation = self._augmentation()
        self._prepare()
        self._forget()

    @property
    def varies(self) -> bool:
        """Whether images are changed at random in training."""
        return self.augmentation.random

    def _augmentation(self) -> Augmentation:
        return Augmentation.of(self.wanted.settings, SIGNS if self.source.symbols else LABELS)

    def _prepare(self) -> None:
        """Makes the transforms."""
        whole = self.source.symbols
        self._plain = self.wanted.plain(whole=whole)
        self._random = self.wanted.random(self.augmentation, whole=whole)
        self._erase = erasing(self.augmentation.erase) if self.augmentation.erase else None

    def _forget(self) -> None:
        """Starts with an empty memory: of images as they are measured, and as they lie there."""
        limit = self.wanted.settings.image_bytes
        self.resized, self.decoded = (ImageMemory(len(self.indices), limit) for _ in range(2))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: Key) -> tuple[torch.Tensor, Any] | DataError:
        index = self.indices[key.place]
        try:
            return self._sample(index, key)
        except DataError as error:
            return error
        except Exception as error:  # Pillow raises many kinds, and data sets of others any kind
            return refused(self.source.where(index), first_line(error), _DURING)

    def __getitems__(self, keys: Sequence[Key]) -> Any:
        """A batch at once, if all is in memory; torch asks for batches by this name."""
        found = None if keys[0].seed is not None else self.resized.gather([k.place for k in keys])
        if found is None:
            return [self[key] for key in keys]
        pixels, labels = self._parted(*found)
        if not all(key.real for key in keys):
            labels[torch.tensor([not key.real for key in keys])] = -1
        return self.wanted.normalised(pixels), labels

    def _sample(self, index: int, key: Key) -> tuple[torch.Tensor, Any]:
        """The image, of 8 bits unless some of it is erased, and its label, or -1 for padding."""
        memory = self.resized if key.seed is None else self.decoded
        found = memory.get(key.place)
        if found is None:
            found = self._read(index, resized=key.seed is None)
            memory.put(key.place, *found)
        pixels, labels = self._parted(*found)
        if key.seed is not None:
            with seeded(key.seed):
                pixels, labels = self._changed(pixels, labels)
        return pixels, labels if key.real else torch.full_like(labels, -1)

    def _read(self, index: int, *, resized: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """What is kept of an image: 8 bits (C, H, W), and its label."""
        from torchvision.transforms.functional import pil_to_tensor

        image, label = self.source.load(index)
        if label < 0 or (self.outputs is not None and label >= self.outputs):
            raise self.outside(index, label)
        image = converted(image, self.wanted.mode)
        return self._plain(image) if resized else pil_to_tensor(image), torch.tensor(label)

    def _parted(
        self, pixels: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels and labels, of what is kept of one image or of several."""
        return pixels, labels

    def _changed(
        self, pixels: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels and labels as the global generators draw them."""
        from torchvision.transforms.functional import to_pil_image

        pixels = self._random(to_pil_image(pixels))
        return pixels if self._erase is None else self._erase(
            self.wanted.normalised(pixels)
        ), labels

    def outside(self, index: int, label: int) -> DataError:
        """VR743, for a label that the head has no output for."""
        return DataError(
            "VR743",
            f"the label {label} of {self.source.where(index)} is outside the head",
            notes=[f"valid: 0..{self.outputs - 1}"] if self.outputs else [],
        )

    def collate(self, samples: Any) -> Batch | list[DataError]:
        """A batch, or all that is wrong with it."""
        if isinstance(samples, tuple):
            return Batch(*samples)
        errors = [sample for sample in samples if isinstance(sample, DataError)]
        if errors:
            return errors
        images, labels = zip(*samples, strict=True)
        stacked = torch.stack(images)
        if stacked.dtype == torch.uint8:
            stacked = self.wanted.normalised(stacked)
        return Batch(stacked, torch.stack(labels))

    def fit(self, outputs: int) -> None:
        """Has every label be one of a head with so many outputs."""
        if outputs != self.outputs:
            self.outputs = outputs
            self._forget()

    def joined(self, other: Images) -> Images:
        """These images and others of the same source."""
        assert self.source is other.source
        joined = object.__new__(type(self))
        joined.__dict__.update(self.__dict__, indices=(*self.indices, *other.indices))
        joined._forget()
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
            images.fit(outputs)
