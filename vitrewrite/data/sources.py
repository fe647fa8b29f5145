"""What `data=` can name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..text import shown
from .images import Data, Images
from .listing import check_all
from .loading import shuffled
from .pictures import check_header
from .preprocessing import Preprocessing
from .seeding import mixed

if TYPE_CHECKING:
    from PIL.Image import Image

    from .folders import ClassFolder

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
    from .scenes import ADE20K, has_maps, open_scenes

    if name.startswith("digits"):
        return _digits(name, wanted, split)
    if name.startswith("timm:"):
        return _timm(name, wanted)
    if name.startswith(ADE20K) or has_maps(Path(name)):
        return open_scenes(name, wanted, split)
    return _folder(name, wanted, split)


def _missing(name: str, reason: str, suggestion: str | None = None) -> DataError:
    return DataError("VR740", f"no data {shown(name)}: {reason}", suggestion=suggestion)


def _empty(name: str, what: str) -> DataError:
    return DataError("VR741", f"the data {shown(name)} is empty: {what}")


@dataclass(frozen=True)
class _Listed:
    """Data sets as libraries have them, one after the other: of an index, an image and its label.

    Attributes:
        labels: of each image, and
        files: where it lies, if that is known.
    """

    name: str
    parts: tuple[Any, ...]
    labels: Sequence[int] = ()
    files: Sequence[Path] = ()
    symbols: bool = False
    held: bool = False

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
        return shown(self.files[index], 200) if self.files else f"{index} of {self.name}"

    def key(self, index: int) -> str:
        name = "/".join(self.files[index].parts[-3:]) if self.files else f"{self.name} {index}"
        return f"{name} {self.labels[index]}" if self.labels else name


def _split(name: str, source: _Listed, wanted: Preprocessing, classes: Sequence[str]) -> Data:
    """The first part to train on, the second to measure on; one source, so they can be joined."""
    count = len(source.parts[0])
    parts = range(count), range(count, len(source))
    train, val = (Images(source, part, wanted) for part in parts)
    return Data(name, train, val, tuple(classes))


def _divided(
    name: str, source: _Listed, wanted: Preprocessing, split: int, classes: Sequence[str]
) -> Data:
    """A fifth of each class for validation, at least one image."""
    members: dict[int, list[int]] = {}
    for index, label in enumerate(source.labels):
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
    parts = (Images(source, sorted(part), wanted) for part in (train, val))
    return Data(name, next(parts), next(parts), tuple(classes))


# -- digits ---------------------------------------------------------------------------------------


def _digits(name: str, wanted: Preprocessing, split: int) -> Data:
    match = _DIGITS.fullmatch(name)
    if not match:
        raise _missing(name, "the digits are 0 to 9", "write 'digits:0-4' or 'digits:1,3,7'")
    chosen = _chosen(name, match[1] or "0-9")
    try:
        from PIL import Image
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "VR745", "'digits' needs scikit-learn", suggestion="pip install 'vitrewrite[tune]'"
        ) from error
    found = load_digits()
    pairs = [
        (Image.fromarray((pixels * (255 / 16)).round().astype("uint8")), chosen.index(int(label)))
        for pixels, label in zip(found.images, found.target, strict=True)
        if int(label) in chosen
    ]
    source = _Listed(name, (pairs,), [label for _, label in pairs], symbols=True, held=True)
    return _divided(name, source, wanted, split, [str(each) for each in chosen])


def _chosen(name: str, text: str) -> list[int]:
    chosen: set[int] = set()
    for part in text.split(","):
        ends = [int(digit) for digit in part.split("-")]
        if len(ends) > 2 or ends != sorted(ends):
            raise _missing(name, f"{shown(part)} is no range", "write 'digits:0-4'")
        chosen |= set(range(ends[0], ends[-1] + 1))
    return sorted(chosen)


# -- folders --------------------------------------------------------------------------------------


def _folder(name: str, wanted: Preprocessing, split: int) -> Data:
    root = Path(name)
    if not root.is_dir():
        near = "'digits', 'timm:NAME@FOLDER', or a folder with a subfolder per class"
        raise _missing(name, "it is no folder", f"give {near}")
    train = _listed(name, root / "train" if (root / "train").is_dir() else root)
    held = next((root / v for v in _VALIDATION if (root / v).is_dir()), None)
    if held is None or train.root == root:
        source = _Listed(name, (train,), train.targets, train.files)
        return _divided(name, source, wanted, split, train.classes)
    val = _listed(name, held)
    odd = set(val.classes) - set(train.classes)
    if odd:
        raise _missing(name, f"'{held.name}' has a class {shown(min(odd))} that 'train' lacks")
    val.relabel(train.classes)
    labels, files = [*train.targets, *val.targets], [*train.files, *val.files]
    return _split(name, _Listed(name, (train, val), labels, files), wanted, train.classes)


def _listed(name: str, folder: Path) -> ClassFolder:
    from .folders import ClassFolder

    found = ClassFolder(folder)
    if not found.samples:
        what = "no image" if found.classes else "no subfolder"
        raise _empty(name, f"{what} in '{folder}'")
    check_all(found.files, check_header)
    return found


# -- timm -----------------------------------------------------------------------------------------


def _timm(name: str, wanted: Preprocessing) -> Data:
    title, _, folder = name.removeprefix("timm:").partition("@")
    source = _Listed(title, tuple(_made(name, title, folder, s) for s in ("train", "validation")))
    if not all(map(len, source.parts)):
        raise _empty(name, "one of its splits has no image")
    return _split(name, source, wanted, getattr(source.parts[0], "classes", ()))


def _made(name: str, title: str, folder: str, split: str) -> Any:
    import timm.data

    library: Any = timm.data
    try:
        made = library.create_dataset(title, folder or None, split=split, download=False)
        len(made)
    except (Exception, SystemExit) as error:  # each library behind timm has its own kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise _missing(name, f"timm cannot open its split '{split}': {reason}") from error
    return made
