"""Images with a map of class indices each, in the layout of ADE20K or of Cityscapes.

```
FOLDER/images/training/a.jpg          FOLDER/annotations/training/a.png
FOLDER/images/validation/b.jpg        FOLDER/annotations/validation/b.png
FOLDER/classes.txt                    one name per line, if there are names
```

Without the folders of the splits, `FOLDER?val=0.2` says what is measured on. `masks` may stand
for `annotations`. A map is a picture of one channel, or with a palette, whose pixels are class
indices from 0 on; 255 is no class. ADE20K's own maps start at 1, and 0 is no class: `ade20k:FOLDER`
reads them. `leftImg8bit` and `gtFine` are Cityscapes', with or without `cityscapes:` in front.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torchvision.datasets import Cityscapes
from torchvision.transforms.functional import pil_to_tensor

from ..errors import DataError
from ..text import shown
from .augmentation import MAPS, Augmentation
from .images import Images
from .joint import JointTransform
from .listing import check_all, image_files
from .maps import IGNORED, check_map, check_values, read_map
from .parts import Found
from .pictures import BEFORE, UnreadableError, converted, opened, read_image, refused

if TYPE_CHECKING:
    from PIL.Image import Image

    from .maps import Map

ADE20K, CITYSCAPES = "ade20k:", "cityscapes:"
_MAPS = ("annotations", "masks")
_TRAINING, _VALIDATION = ("training", "train"), ("validation", "val", "test")
_CITYSCAPES = ("leftImg8bit", "gtFine")
_IDS = "_labelIds.png"
_NAMES = "classes.txt"


@dataclass(frozen=True)
class Scene:
    """The files of an image and of its map."""

    image: Path
    labels: Path


@dataclass(frozen=True)
class Numbering:
    """How the values of maps count the classes.

    Attributes:
        first: the value of the first class; 0 is none if it is 1.
        named: how many classes our own file names; 0 if there is none.
        table: what the name of a map ends in whose values are translated, and the class of each.
    """

    first: int
    named: int
    table: tuple[str, dict[int, int]] | None = None

    def classes(self, labels: Map, path: Path, where: str, outputs: int | None) -> torch.Tensor:
        """The classes of a map, from 0 on.

        Raises:
            DataError: VR743 for a value that stands for none.
        """
        if self.table is not None and path.name.endswith(self.table[0]):
            check_values(labels, where, None, len(self.table[1]), 0)
            values = np.full(256, IGNORED)
            values[list(self.table[1])] = list(self.table[1].values())
            return torch.from_numpy(values[labels])
        check_values(labels, where, outputs, self.named, self.first)
        if self.first:
            labels = np.where((labels == 0) | (labels == IGNORED), IGNORED, labels - 1)
        return torch.from_numpy(labels)


@dataclass(frozen=True)
class _Scenes:
    files: tuple[Scene, ...]
    numbering: Numbering
    symbols: bool = False
    held: bool = False

    def __len__(self) -> int:
        return len(self.files)

    def load(self, index: int) -> tuple[Image, Any]:
        scene = self.files[index]
        image = read_image(scene.image)
        return image, read_map(scene.labels, (image.height, image.width))

    def checked(self, labels: Map, index: int, outputs: int | None) -> torch.Tensor:
        """The classes of a map, from 0 on."""
        path = self.files[index].labels
        where = f"the map {shown(path, 200)} of {self.where(index)}"
        return self.numbering.classes(labels, path, where, outputs)

    def where(self, index: int) -> str:
        return shown(self.files[index].image, 200)

    def key(self, index: int) -> str:
        return "/".join(self.files[index].image.parts[-3:])


class Scenes(Images):
    """Some images with their maps, at the model's size."""

    source: Any

    def _augmentation(self) -> Augmentation:
        return Augmentation.of(self.wanted.settings, MAPS)

    def _prepare(self) -> None:
        mean = tuple(self.wanted.config["mean"])
        self.joint = JointTransform(self.wanted.size[1:], mean, self.augmentation)

    def _read(self, index: int, *, resized: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The map is kept as a further channel."""
        image, values = self.source.load(index)
        labels = self.source.checked(values, index, self.outputs).to(torch.uint8)
        pixels = pil_to_tensor(converted(image, self.wanted.mode))
        if resized:
            pixels, labels = self.joint.plain(pixels, labels)
        return torch.cat([pixels, labels[None]]), torch.tensor(0)

    def _parted(
        self, pixels: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return pixels[..., :-1, :, :], pixels[..., -1, :, :].long()

    def _changed(
        self, pixels: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.joint.random(pixels, labels)


def _check_heads(scene: Scene) -> DataError | None:
    """What is wrong with an image or its map, as far as the heads of the files tell."""
    try:
        with opened(scene.image) as (_, head):
            size = head.size
    except UnreadableError as error:
        return refused(scene.image, error, BEFORE)
    return check_map(scene.labels, size)


# -- folders --------------------------------------------------------------------------------------


def has_maps(folder: Path) -> bool:
    """Whether a folder looks like one of images with label maps."""
    try:
        ours = (folder / "images").is_dir() and _maps(folder) is not None
        return ours or all((folder / name).is_dir() for name in _CITYSCAPES)
    except (OSError, ValueError):
        return False


def _maps(folder: Path) -> Path | None:
    return next((folder / name for name in _MAPS if (folder / name).is_dir()), None)


def open_scenes(name: str) -> Found:
    """Opens a folder.

    Raises:
        DataError: VR740 if it has another layout, VR741 if it is empty, VR747 if an image has no
            map.
    """
    root = Path(name.removeprefix(ADE20K).removeprefix(CITYSCAPES))
    if name.startswith(CITYSCAPES) or all((root / each).is_dir() for each in _CITYSCAPES):
        return _cityscapes(name, root)
    maps = _maps(root)
    if maps is None or not (root / "images").is_dir():
        raise DataError(
            "VR740",
            f"no data {shown(name)}: it is no folder with 'images' and 'annotations'",
            suggestion="put images/training/a.jpg beside annotations/training/a.png",
        )
    training = _split(name, root / "images", maps, _TRAINING)
    held = None if training is None else _split(name, root / "images", maps, _VALIDATION)
    if training is None:
        training = tuple(_paired(name, root / "images", maps))
    first = int(name.startswith(ADE20K))
    return _checked(
        name, root / "images", training, held, Numbering(first, _named(root)), _classes(root)
    )


def _checked(
    name: str,
    images: Path,
    training: tuple[Scene, ...],
    held: tuple[Scene, ...] | None,
    numbering: Numbering,
    classes: tuple[str, ...],
) -> Found:
    """The scenes, if the heads of their files can be read."""
    if not training:
        message = f"the data {shown(name)} is empty: no image in '{images}'"
        raise DataError("VR741", message)
    scenes = (*training, *(held or ()))
    check_all(scenes, _check_heads)
    count = len(training)
    val = range(count, len(scenes)) if held else None
    return Found(_Scenes(scenes, numbering), range(count), val, classes, None)


def _split(name: str, images: Path, maps: Path, names: tuple[str, ...]) -> tuple[Scene, ...] | None:
    """The scenes of a split, or None if there is no folder of it."""
    for each in names:
        if (images / each).is_dir():
            return tuple(_paired(name, images / each, maps / each))
    return None


def _paired(name: str, images: Path, maps: Path) -> Iterator[Scene]:
    """The images below a folder with their maps, of the same name but for the suffix."""
    for path in image_files(images):
        yield _scene(name, path, (maps / path.relative_to(images)).with_suffix(".png"))


def _scene(name: str, image: Path, *places: Path) -> Scene:
    """An image with its map, at the first of several places."""
    labels = next((place for place in places if place.is_file()), None)
    if labels is None:
        raise DataError(
            "VR747",
            f"the image {shown(image, 200)} of {shown(name)} has no label map",
            suggestion=f"put it at '{places[0]}', or remove the image",
        )
    return Scene(image, labels)


def _named(root: Path) -> int:
    """How many classes there are, if our own file says so."""
    return len(_classes(root)) if (root / _NAMES).is_file() else 0


def _classes(root: Path) -> tuple[str, ...]:
    """Names of the classes, if a file has them: ours, or that of ADE20K."""
    names, table = root / _NAMES, root / "objectInfo150.txt"
    if names.is_file():
        lines = names.read_text(encoding="utf-8").splitlines()
        return tuple(line.strip() for line in lines if line.strip())
    if table.is_file():
        rows = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines()[1:]]
        return tuple(row[-1].partition(",")[0].strip() for row in rows if len(row) > 1)
    return ()


# -- Cityscapes -----------------------------------------------------------------------------------


def _cityscapes(name: str, root: Path) -> Found:
    """`leftImg8bit/train/CITY/a_leftImg8bit.png` with `gtFine/train/CITY/a_gtFine_labelIds.png`.

    Maps of `labelTrainIds` are taken where they are; others are translated by torchvision's table.
    """
    images, maps = (root / each for each in _CITYSCAPES)
    if not (images / "train").is_dir() or not maps.is_dir():
        raise DataError(
            "VR740",
            f"no data {shown(name)}: it has no 'leftImg8bit/train' and 'gtFine'",
            suggestion="give the folder that both lie in",
        )
    parts = [
        tuple(_scene(name, path, *_places(path, images, maps)) for path in image_files(folder))
        if (folder := images / split).is_dir()
        else None
        for split in ("train", "val")
    ]
    known = Cityscapes.classes
    table = {c.id: c.train_id if not c.ignore_in_eval else IGNORED for c in known if c.id >= 0}
    names = {c.train_id: c.name for c in known if not c.ignore_in_eval}
    numbering = Numbering(0, len(names), (_IDS, table))
    classes = tuple(names[label] for label in sorted(names))
    return _checked(name, images, parts[0] or (), parts[1], numbering, classes)


def _places(image: Path, images: Path, maps: Path) -> Iterator[Path]:
    stem = image.stem.removesuffix("_leftImg8bit")
    for kind in ("labelTrainIds", "labelIds"):
        yield maps / image.parent.relative_to(images) / f"{stem}_gtFine_{kind}.png"
