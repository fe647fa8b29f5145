"""What `data=` can name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..text import shown
from .images import Data, Images, ImageSource
from .listing import check_all, image_files
from .loading import shuffled
from .pictures import check_header, read_image
from .preprocessing import Preprocessing
from .scenes import ADE20K, has_maps, open_scenes
from .seeding import mixed

if TYPE_CHECKING:
    from PIL.Image import Image

_HELD_OUT = 5  # one of so many images of a class, where a source has no validation split
_DIGITS = re.compile(r"digits(?::(\d(?:[-,]\d)*))?")
_VALIDATION = ("val", "validation", "test")


def open_data(name: str, wanted: Preprocessing, *, split: int = 0) -> Data:
    """Opens what `data=` names.

    Args:
        name: see the package.
        wanted: how the model takes images.
        split: another number holds out other images, where the source has no split of its own.

    Raises:
        DataError: VR740 if there is no such data, VR741 if it is empty, VR745 if a library that
            reads it is missing, VR747 if an image has no label map.
    """
    if name.startswith("digits"):
        return _digits(name, wanted, split)
    if name.startswith("timm:"):
        return _timm(name, wanted, split)
    if name.startswith(ADE20K) or has_maps(Path(name)):
        return open_scenes(name, wanted, split)
    return _folder(name, wanted, split)


def _missing(name: str, reason: str, suggestion: str | None = None) -> DataError:
    return DataError("VR740", f"no data {shown(name)}: {reason}", suggestion=suggestion)


def _empty(name: str, what: str) -> DataError:
    return DataError("VR741", f"the data {shown(name)} is empty: {what}")


def _divided(
    name: str, source: ImageSource, labels: Sequence[int], wanted: Preprocessing, split: int
) -> tuple[Images, Images]:
    """A fifth of each class for validation, at least one image."""
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    train: list[int] = []
    val: list[int] = []
    for label, indices in sorted(members.items()):
        order = [indices[i] for i in shuffled(len(indices), mixed("split", split, label))]
        held = max(1, len(indices) // _HELD_OUT)
        val += order[:held]
        train += order[held:]
    if not train:
        raise _empty(name, "a class needs two images, one of them to measure on")
    return Images(source, sorted(train), wanted, None), Images(source, sorted(val), wanted, None)


# -- digits ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Digits:
    pixels: Any  # (N, 8, 8) from 0 to 255
    labels: tuple[int, ...]
    symbols: bool = True

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int) -> tuple[Image, int]:
        from PIL import Image

        return Image.fromarray(self.pixels[index]), self.labels[index]

    def where(self, index: int) -> str:
        return f"{index} of digits"

    def key(self, index: int) -> str:
        return f"{index} {self.labels[index]}"


def _digits(name: str, wanted: Preprocessing, split: int) -> Data:
    match = _DIGITS.fullmatch(name)
    if not match:
        raise _missing(name, "the digits are 0 to 9", "write 'digits:0-4' or 'digits:1,3,7'")
    chosen = _chosen(name, match[1] or "0-9")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "VR745", "'digits' needs scikit-learn", suggestion="pip install 'vitrewrite[tune]'"
        ) from error
    found = load_digits()
    pairs = zip(found.images, found.target, strict=True)
    kept = [(image, chosen.index(int(label))) for image, label in pairs if int(label) in chosen]
    pixels = [(image * (255 / 16)).round().astype("uint8") for image, _ in kept]
    source = _Digits(pixels, tuple(label for _, label in kept))
    parts = _divided(name, source, source.labels, wanted, split)
    return Data(name, *parts, tuple(map(str, chosen)))


def _chosen(name: str, text: str) -> list[int]:
    chosen: set[int] = set()
    for part in text.split(","):
        ends = [int(digit) for digit in part.split("-")]
        if len(ends) > 2 or ends != sorted(ends):
            raise _missing(name, f"{shown(part)} is no range", "write 'digits:0-4'")
        chosen |= set(range(ends[0], ends[-1] + 1))
    return sorted(chosen)


# -- folders --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Files:
    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    symbols: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int) -> tuple[Image, int]:
        return read_image(self.paths[index]), self.labels[index]

    def where(self, index: int) -> str:
        return shown(self.paths[index], 200)

    def key(self, index: int) -> str:
        return f"{'/'.join(self.paths[index].parts[-3:])} {self.labels[index]}"


def _folder(name: str, wanted: Preprocessing, split: int) -> Data:
    root = Path(name)
    if not root.is_dir():
        near = "'digits', 'timm:NAME@FOLDER', or a folder with a subfolder per class"
        raise _missing(name, "it is no folder", f"give {near}")
    if not (root / "train").is_dir():
        classes = _class_folders(root)
        source = _listed(name, root, classes)
        return Data(name, *_divided(name, source, source.labels, wanted, split), classes)
    held = next((root / v for v in _VALIDATION if (root / v).is_dir()), None)
    classes = _class_folders(root / "train")
    train = _listed(name, root / "train", classes)
    if held is None:
        return Data(name, *_divided(name, train, train.labels, wanted, split), classes)
    odd = set(_class_folders(held)) - set(classes)
    if odd:
        raise _missing(name, f"'{held.name}' has a class {shown(min(odd))} that 'train' lacks")
    val = _listed(name, held, classes)
    # One source, so that the two can be joined.
    both = _Files((*train.paths, *val.paths), (*train.labels, *val.labels))
    parts = range(len(train)), range(len(train), len(both))
    first, second = (Images(both, part, wanted, None) for part in parts)
    return Data(name, first, second, classes)


def _class_folders(folder: Path) -> tuple[str, ...]:
    found = (p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    return tuple(sorted(found))


def _listed(name: str, folder: Path, classes: Sequence[str]) -> _Files:
    pairs = [
        (path, label)
        for label, each in enumerate(classes)
        if (folder / each).is_dir()
        for path in image_files(folder / each)
    ]
    if not pairs:
        what = "no image" if classes else "no subfolder"
        raise _empty(name, f"{what} in '{folder}'")
    paths, labels = zip(*pairs, strict=True)
    check_all(paths, check_header)
    return _Files(paths, labels)


# -- timm -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Timm:
    name: str
    parts: tuple[Any, ...]  # map-style data sets, one after the other
    symbols: bool = False

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def load(self, index: int) -> tuple[Image, int]:
        for part in self.parts:
            if index < len(part):
                image, label = part[index]
                return image, int(label)
            index -= len(part)
        raise IndexError(index)

    def where(self, index: int) -> str:
        return f"{index} of {self.name}"

    def key(self, index: int) -> str:
        return f"{self.name} {index}"


def _timm(name: str, wanted: Preprocessing, split: int) -> Data:
    title, _, folder = name.removeprefix("timm:").partition("@")
    train = _created(name, title, folder, "train")
    val = _created(name, title, folder, "validation")
    source = _Timm(title, (train, val))
    if not len(train) or not len(val):
        raise _empty(name, "one of its splits has no image")
    parts = range(len(train)), range(len(train), len(source))
    first, second = (Images(source, part, wanted, None) for part in parts)
    return Data(name, first, second, tuple(getattr(train, "classes", ())))


def _created(name: str, title: str, folder: str, split: str) -> Any:
    import timm.data

    library: Any = timm.data
    try:
        made = library.create_dataset(title, folder or None, split=split, download=False)
        len(made)
    except (Exception, SystemExit) as error:  # each library behind timm has its own kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise _missing(name, f"timm cannot open its split '{split}': {reason}") from error
    return made
