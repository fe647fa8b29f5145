"""What `data=` can name."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..text import shown
from .images import Data, Images
from .listing import check_all
from .options import parsed
from .parts import Found, divided
from .pictures import check_header
from .preprocessing import Preprocessing
from .seeding import mixed, shuffled

if TYPE_CHECKING:
    from PIL.Image import Image

    from .folders import ClassFolder

_HELD_OUT = 5  # one of so many images of a digit are its own validation part
_DIGITS = re.compile(r"digits(?::(\d(?:[-,]\d)*))?")
_VALIDATION = ("val", "validation", "test")


def open_data(name: str, wanted: Preprocessing, *, measured: bool = True) -> Data:
    """Opens what `data=` names.

    Args:
        name: see the package.
        wanted: how the model takes images.
        measured: whether there have to be images to measure on.

    Raises:
        DataError: VR740 if there is no such data, VR741 if it is empty, VR745 if a library that
            reads it is missing, VR747 if an image has no label map, VR749 to VR752 for what cannot
            be chosen of it, VR755 for what such images cannot have.
    """
    from .scenes import Scenes

    bare, choice = parsed(name)
    found = _found(bare)
    kind = Scenes if found.maps else Images
    chosen = divided(bare, found, choice, measured=measured)
    parts = (kind(found.source, part, wanted) for part in chosen)
    return Data(name, next(parts), next(parts), found.classes, found.maps)


def _found(name: str) -> Found:
    from . import libraries, scenes

    prefixes: dict[str, Callable[[str], Found]] = {
        "digits": _digits, "timm:": libraries.of_timm, "torchvision:": libraries.of_torchvision,
        "hf:": libraries.of_hugging_face, scenes.ADE20K: scenes.open_scenes,
        scenes.CITYSCAPES: scenes.open_scenes,
    }  # fmt: skip
    for prefix, read in prefixes.items():
        if name.startswith(prefix):
            return read(name)
    return scenes.open_scenes(name) if scenes.has_maps(Path(name)) else _folder(name)


def missing(name: str, reason: str, suggestion: str | None = None) -> DataError:
    """VR740."""
    return DataError("VR740", f"no data {shown(name)}: {reason}", suggestion=suggestion)


def empty(name: str, what: str) -> DataError:
    """VR741."""
    return DataError("VR741", f"the data {shown(name)} is empty: {what}")


@dataclass(frozen=True)
class Listed:
    """Data sets as libraries have them, one after the other: of an index, an image and its label.

    Attributes:
        known: the label of each image, and
        files: where it lies, if that is known.
        symbols: whether the images are signs, and
        held: whether they are in memory.
    """

    name: str
    parts: tuple[Any, ...]
    known: Sequence[int] = ()
    files: Sequence[Path] = ()
    symbols: bool = False
    held: bool = False

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def load(self, index: int) -> tuple[Image, int]:
        """An image and its label."""
        for part in self.parts:
            if index < len(part):
                image, label = part[index]
                return image, int(label)
            index -= len(part)
        raise IndexError(index)

    def where(self, index: int) -> str:
        """What to call an image."""
        return shown(self.files[index], 200) if self.files else f"{index} of {self.name}"

    def key(self, index: int) -> str:
        """What identifies an image."""
        name = "/".join(self.files[index].parts[-3:]) if self.files else f"{self.name} {index}"
        return f"{name} {self.known[index]}" if self.known else name

    def labels(self, images: Sequence[int]) -> list[int]:
        """Labels of some images; the images are read if nothing else tells."""
        return [self.known[i] if self.known else self.load(i)[1] for i in images]

    def found(self, classes: Sequence[str], without: str = "") -> Found:
        """The first data set is to train on, the second, if there is one, to measure on."""
        count = len(self.parts[0])
        val = range(count, len(self)) if len(self.parts) > 1 else None
        return Found(self, range(count), val, tuple(map(str, classes)), self.labels, without)


# -- digits ---------------------------------------------------------------------------------------


def _digits(name: str) -> Found:
    """A fifth of each digit is its own validation part, always the same one."""
    match = _DIGITS.fullmatch(name)
    if not match:
        raise missing(name, "the digits are 0 to 9", "write 'digits:0-4' or 'digits:1,3,7'")
    chosen = _chosen(name, match[1] or "0-9")
    try:
        from PIL import Image
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "VR745", "'digits' needs scikit-learn", suggestion="pip install 'vitrewrite[tune]'"
        ) from error
    found = load_digits()
    parts: tuple[list[Any], list[Any]] = [], []
    for label, digit in enumerate(chosen):
        places = [i for i, target in enumerate(found.target) if target == digit]
        order = shuffled(len(places), mixed("split", 0, label))
        held = set(order[: len(places) // _HELD_OUT])
        for number, place in enumerate(places):
            pixels = (found.images[place] * (255 / 16)).round().astype("uint8")
            pair = place, Image.fromarray(pixels), label
            parts[number in held].append(pair)
    # In the order of the whole set.
    train, val = ([pair[1:] for pair in sorted(part, key=lambda p: p[0])] for part in parts)
    known = [label for _, label in (*train, *val)]
    return Listed(name, (train, val), known, symbols=True, held=True).found(list(map(str, chosen)))


def _chosen(name: str, text: str) -> list[int]:
    chosen: set[int] = set()
    for part in text.split(","):
        ends = [int(digit) for digit in part.split("-")]
        if len(ends) > 2 or ends != sorted(ends):
            raise missing(name, f"{shown(part)} is no range", "write 'digits:0-4'")
        chosen |= set(range(ends[0], ends[-1] + 1))
    return sorted(chosen)


# -- folders --------------------------------------------------------------------------------------


def _folder(name: str) -> Found:
    root = Path(name)
    if not root.is_dir():
        near = "'digits', 'timm:NAME@FOLDER', or a folder with a subfolder per class"
        raise missing(name, "it is no folder", f"give {near}")
    train = _listed(name, root / "train" if (root / "train").is_dir() else root)
    held = next((root / v for v in _VALIDATION if (root / v).is_dir()), None)
    if held is None or train.root == root:
        return Listed(name, (train,), train.targets, train.files).found(train.classes)
    val = _listed(name, held)
    odd = set(val.classes) - set(train.classes)
    if odd:
        raise missing(name, f"'{held.name}' has a class {shown(min(odd))} that 'train' lacks")
    val.relabel(train.classes)
    known, files = [*train.targets, *val.targets], [*train.files, *val.files]
    return Listed(name, (train, val), known, files).found(train.classes)


def _listed(name: str, folder: Path) -> ClassFolder:
    from .folders import ClassFolder

    found = ClassFolder(folder)
    if not found.samples:
        what = "no image" if found.classes else "no subfolder"
        raise empty(name, f"{what} in '{folder}'")
    check_all(found.files, check_header)
    return found
