"""Divides a source into the images that are trained on and those that are measured on.

What is drawn depends on the source and on `draw` alone, not on the seed of a run, so that runs with
different seeds see, and are measured on, the same images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import DataError
from ..text import plural, shown
from .options import Choice
from .seeding import mixed, shuffled

_STATE = (
    "give it a folder 'val', or state a share as in '{}?val=0.2', or folds, '{}?fold=0&folds=5'"
)


@dataclass(frozen=True)
class Found:
    """What a source has.

    Attributes:
        source: the images.
        train: which of them are to train on.
        val: its own validation part, if it has one.
        classes: names by label; empty if it does not say.
        labels: the labels of some images, or None if each image has a map of them.
        without: why there is no validation part, if there is a reason.
    """

    source: Any
    train: Sequence[int]
    val: Sequence[int] | None
    classes: tuple[str, ...]
    labels: Callable[[Sequence[int]], Sequence[int]] | None
    without: str = ""

    @property
    def maps(self) -> bool:
        """Whether each image has a map of labels."""
        return self.labels is None


def divided(
    name: str, found: Found, choice: Choice, *, measured: bool
) -> tuple[Sequence[int], Sequence[int]]:
    """Images to train on and images to measure on.

    Args:
        name: of the source, for messages.
        found: what it has.
        choice: which of it.
        measured: whether anything is measured; if not, no validation part is needed.

    Raises:
        DataError: VR749 if nothing says what is measured on, VR751 for more than there is, VR752
            if a class would be left without an image.
    """
    train, val = _drawn(name, found.train, choice), found.val
    if choice.val is not None:
        train, val = _held_out(found, train, choice.val, choice.draw)
    elif choice.folds is not None and choice.fold is not None:
        train, val = _folded(found, train, choice.fold, choice.folds, choice.draw)
    elif val is None and measured:
        notes = [found.without] if found.without else []
        raise DataError(
            "VR749",
            f"the data {shown(name)} has no validation part, and none is stated",
            notes=notes,
            suggestion=_STATE.format(name, name),
        )
    if choice.shots is not None:
        train = _few(name, found, train, choice.shots, choice.draw)
    return train, val if val is not None else ()


def _drawn(name: str, images: Sequence[int], choice: Choice) -> Sequence[int]:
    if choice.images is None:
        return images
    if choice.images > len(images):
        message = f"the data {shown(name)} has {plural(len(images), 'image')} to train on"
        raise DataError("VR751", f"{message}, not {choice.images}")
    order = shuffled(len(images), mixed("images", choice.draw))[: choice.images]
    return sorted(images[place] for place in order)


def _members(found: Found, images: Sequence[int], draw: int) -> dict[int, list[int]]:
    """The images of each class, in an order of their own; images with maps are all of one."""
    labels = [0] * len(images) if found.labels is None else found.labels(images)
    members: dict[int, list[int]] = {}
    for index, label in zip(images, labels, strict=True):
        members.setdefault(int(label), []).append(index)
    return {
        label: [each[place] for place in shuffled(len(each), mixed("split", draw, label))]
        for label, each in sorted(members.items())
    }


def _held_out(
    found: Found, images: Sequence[int], share: float, draw: int
) -> tuple[list[int], list[int]]:
    """A share of each class for validation, rounded down."""
    train: list[int] = []
    val: list[int] = []
    for label, members in _members(found, images, draw).items():
        count = math.floor(len(members) * share + 1e-9)
        if not count:
            raise _left_empty(found, label, len(members), f"val={share:g}")
        val += members[:count]
        train += members[count:]
    return sorted(train), sorted(val)


def _folded(
    found: Found, images: Sequence[int], fold: int, folds: int, draw: int
) -> tuple[list[int], list[int]]:
    """Each class in as many parts as there are folds, one of which is measured on."""
    train: list[int] = []
    val: list[int] = []
    for label, members in _members(found, images, draw).items():
        if len(members) < folds:
            raise _left_empty(found, label, len(members), f"folds={folds}")
        val += members[fold::folds]
        train += [each for place, each in enumerate(members) if place % folds != fold]
    return sorted(train), sorted(val)


def _left_empty(found: Found, label: int, count: int, what: str) -> DataError:
    of = f"{_called(found, label)}, which has" if found.labels else "the"
    return DataError(
        "VR752",
        f"{what} leaves nothing to measure on of {of} {plural(count, 'image')}",
        suggestion="take a larger share, or fewer folds",
    )


def _few(name: str, found: Found, images: Iterable[int], shots: int, draw: int) -> list[int]:
    """So many images of each class."""
    if found.labels is None:
        message = f"shots={shots} is of each class, and the images of {shown(name)} have maps"
        raise DataError("VR750", message, suggestion="take images= for a number of them")
    chosen: list[int] = []
    for label, members in _members(found, list(images), draw).items():
        if len(members) < shots:
            what = f"{_called(found, label)} of {shown(name)} has {plural(len(members), 'image')}"
            raise DataError("VR751", f"{what} to train on, not {shots}")
        chosen += members[:shots]
    return sorted(chosen)


def _called(found: Found, label: int) -> str:
    name = found.classes[label] if label < len(found.classes) else label
    return f"class {shown(name)}"
