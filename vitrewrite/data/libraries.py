"""Data sets of libraries: timm's, torchvision's, and those that Hugging Face's wrote to disk."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from ..errors import DataError
from ..text import did_you_mean, first_line, listing, shown
from .parts import Found
from .sources import Listed, empty, missing

# What libraries call the part that is trained on, and the one that is measured on.
_SPLITS = (("train", "trainval"), ("val", "valid", "validation", "test"))
_LABELS = ("label", "labels")


def of_timm(name: str) -> Found:
    """`timm:NAME@FOLDER`.

    Raises:
        DataError: VR740 if timm cannot open it, VR741 if it is empty.
    """
    import timm.data

    title, _, folder = name.removeprefix("timm:").partition("@")
    library: Any = timm.data

    def made(split: str) -> Any:
        return library.create_dataset(title, folder or None, split=split, download=False)

    return _parts(name, title, lambda split: made("train" if split == 0 else "validation"))


def of_torchvision(name: str) -> Found:
    """`torchvision:NAME@FOLDER`.

    Raises:
        DataError: VR740 if torchvision does not have it, or not in the folder, VR741.
    """
    from torchvision import datasets

    title, _, folder = name.removeprefix("torchvision:").partition("@")
    kind = getattr(datasets, title, None) if title in datasets.__all__ else None
    if kind is None:
        near = did_you_mean(title, datasets.__all__)
        raise missing(name, f"torchvision has no data set {shown(title)}", near)
    known = inspect.signature(kind).parameters
    options = {k: v for k, v in (("root", folder or "."), ("download", False)) if k in known}
    if "train" in known:
        return _parts(name, title, lambda split: kind(**options, train=split == 0))
    if "split" in known:
        return _parts(name, title, lambda split: _first(kind, options, _SPLITS[split]))
    return _parts(name, title, lambda split: None if split else kind(**options))


def _first(kind: Any, options: dict[str, Any], names: tuple[str, ...]) -> Any:
    """The first part of these names that a data set has."""
    for name in names:
        try:
            return kind(**options, split=name)
        except ValueError:  # what torchvision raises for a name that is none
            continue
    return None


def of_hugging_face(name: str) -> Found:
    """`hf:FOLDER`, as `save_to_disk` of the library `datasets` wrote it.

    Raises:
        DataError: VR740 if it is none, VR741 if it is empty, VR745 without the library.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "VR745",
            f"{shown(name)} needs the library datasets",
            suggestion="pip install 'vitrewrite[datasets]'",
        ) from error
    folder = name.removeprefix("hf:")
    try:
        found: Any = datasets.load_from_disk(folder)
    except Exception as error:  # pyarrow and fsspec have kinds of their own
        raise missing(name, first_line(error)) from error
    if not isinstance(found, dict):
        found = {"train": found}
    named = [next((found[s] for s in names if s in found), None) for names in _SPLITS]
    if named[0] is None:
        raise missing(name, f"it has no part 'train', but {listing(found)}")
    image, label = _columns(name, named[0].features, datasets)
    rows = [None if part is None else _Rows(part, image, label) for part in named]
    return _parts(name, folder, rows.__getitem__)


def _columns(name: str, features: Any, library: Any) -> tuple[str, str]:
    """Which columns are the image and its label."""
    images = [k for k, v in features.items() if isinstance(v, library.Image)]
    labels = [k for k, v in features.items() if isinstance(v, library.ClassLabel)]
    labels += [k for k in _LABELS if k in features and k not in (*labels, *images)]
    if not images or not labels:
        what = "no column of images" if not images else "no column of labels"
        raise missing(name, f"it has {what}, but {listing(features)}")
    return images[0], labels[0]


@dataclass(frozen=True)
class _Rows:
    """A data set of Hugging Face as a list of images and labels."""

    rows: Any
    image: str
    label: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        row = self.rows[index]
        return row[self.image], int(row[self.label])

    @property
    def targets(self) -> list[int]:
        """The labels, without reading an image."""
        return [int(label) for label in self.rows[self.label]]

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, if it has them."""
        return tuple(getattr(self.rows.features[self.label], "names", ()))


def _parts(name: str, title: str, made: Any) -> Found:
    """A data set whose parts 0, to train on, and 1, to measure on, come from a function."""
    train, reason = _made(made, 0)
    if train is None:
        raise missing(name, reason or "it has no part to train on")
    val, without = _made(made, 1)
    if not len(train) or (val is not None and not len(val)):
        raise empty(name, "one of its splits has no image")
    parts = (train,) if val is None else (train, val)
    known = [_targets(part) for part in parts]
    whole = [] if any(each is None for each in known) else [v for each in known for v in each or ()]
    return Listed(title, parts, whole).found(getattr(train, "classes", ()), without)


def _made(made: Any, split: int) -> tuple[Any, str]:
    """A part, or why there is none."""
    try:
        part = made(split)
        if part is not None:
            len(part)
        return part, ""
    except (Exception, SystemExit) as error:  # each library has its own kinds
        return None, first_line(error) if isinstance(error, Exception) else "SystemExit"


def _targets(part: Any) -> list[int] | None:
    """Labels of all images, if the data set has a list of them."""
    for name in ("targets", "labels"):
        found = getattr(part, name, None)
        if found is not None and len(found) == len(part):
            return [int(label) for label in found]
    return None
