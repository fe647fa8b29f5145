"""Images with a map of class indices each, in the layout of ADE20K.

```
FOLDER/images/training/a.jpg          FOLDER/annotations/training/a.png
FOLDER/images/validation/b.jpg        FOLDER/annotations/validation/b.png
FOLDER/classes.txt                    one name per line, if there are names
```

Without the folders of the splits, a fifth of the images is held out. `masks` may stand for
`annotations`. A map is a picture of one channel, or with a palette, whose pixels are class indices
from 0 on; 255 is no class. ADE20K's own maps start at 1, and 0 is no class: `ade20k:FOLDER` reads
them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torchvision.transforms.functional import pil_to_tensor

from ..errors import DataError
from ..text import shown
from .augmentation import MAPS, Augmentation
from .images import Data, Images
from .joint import JointTransform
from .listing import check_all, image_files
from .loading import shuffled
from .maps import IGNORED, check_map, check_values, read_map
from .pictures import BEFORE, UnreadableError, converted, opened, read_image, refused
from .preprocessing import Preprocessing
from .seeding import mixed

if TYPE_CHECKING:
    from PIL.Image import Image

    from .maps import Map

ADE20K = "ade20k:"
_MAPS = ("annotations", "masks")
_TRAINING, _VALIDATION = ("training", "train"), ("validation", "val", "test")
_HELD_OUT = 5  # one of so many images
_NAMES = "classes.txt"


@dataclass(frozen=True)
class Scene:
    """The files of an image and of its map."""

    image: Path
    labels: Path


@dataclass(frozen=True)
class _Scenes:
    files: tuple[Scene, ...]
    shifted: bool  # whether classes start at 1
    named: int  # of how many classes our own file has the names
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
        where = f"the map {shown(self.files[index].labels, 200)} of {self.where(index)}"
        check_values(labels, where, outputs, self.named, int(self.shifted))
        if self.shifted:
            labels = np.where((labels == 0) | (labels == IGNORED), IGNORED, labels - 1)
        return torch.from_numpy(labels)

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
        return (folder / "images").is_dir() and _maps(folder) is not None
    except (OSError, ValueError):
        return False


def _maps(folder: Path) -> Path | None:
    return next((folder / name for name in _MAPS if (folder / name).is_dir()), None)


def open_scenes(name: str, wanted: Preprocessing, split: int) -> Data:
    """Opens a folder.

    Raises:
        DataError: VR740 if it has another layout, VR741 if it is empty, VR747 if an image has no
            map.
    """
    shifted = name.startswith(ADE20K)
    root = Path(name.removeprefix(ADE20K))
    maps = _maps(root)
    if maps is None or not (root / "images").is_dir():
        raise DataError(
            "VR740", f"no data {shown(name)}: it is no folder with 'images' and 'annotations'",
            suggestion="put images/training/a.jpg beside annotations/training/a.png",
        )  # fmt: skip
    training = _split(name, root / "images", maps, _TRAINING)
    held = () if training is None else _split(name, root / "images", maps, _VALIDATION) or ()
    if training is None:
        training = tuple(_paired(name, root / "images", maps))
    if not training:
        message = f"the data {shown(name)} is empty: no image in '{root / 'images'}'"
        raise DataError("VR741", message)
    check_all((*training, *held), _check_heads)
    source = _Scenes((*training, *held), shifted, _named(root))
    parts = _divided(name, len(training), len(held), split)
    first, second = (Scenes(source, part, wanted) for part in parts)
    return Data(name, first, second, _classes(root), maps=True)


def _split(name: str, images: Path, maps: Path, names: tuple[str, ...]) -> tuple[Scene, ...] | None:
    """The scenes of a split, or None if there is no folder of it."""
    for each in names:
        if (images / each).is_dir():
            return tuple(_paired(name, images / each, maps / each))
    return None


def _paired(name: str, images: Path, maps: Path) -> Iterator[Scene]:
    """The images below a folder with their maps, of the same name but for the suffix."""
    for path in image_files(images):
        labels = (maps / path.relative_to(images)).with_suffix(".png")
        if not labels.is_file():
            raise DataError(
                "VR747", f"the image {shown(path, 200)} of {shown(name)} has no label map",
                suggestion=f"put it at '{labels}', or remove the image",
            )  # fmt: skip
        yield Scene(path, labels)


def _divided(name: str, training: int, held: int, split: int) -> tuple[list[int], list[int]]:
    """Which images are trained on and which are measured on."""
    if held:
        return list(range(training)), list(range(training, training + held))
    if training < 2:
        message = f"the data {shown(name)} is empty: it needs two images, one to measure on"
        raise DataError("VR741", message)
    order = shuffled(training, mixed("split", split, 0))
    count = max(1, training // _HELD_OUT)
    return sorted(order[count:]), sorted(order[:count])


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
