"""Which images a folder holds, and which of them cannot be read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import TypeVar

from ..errors import DataError
from ..text import shown

_HEADS = 20_000  # files whose head is read before anything else is done
_TOLD = 10  # of the errors of one folder
# Images that many programs know and Pillow may not: named rather than passed over.
_OTHERS = {".avif", ".heic", ".heif", ".jxl", ".eps", ".svg", ".dng", ".cr2", ".nef", ".arw"}
T = TypeVar("T")


def image_files(folder: Path) -> list[Path]:
    """The files in a folder that are named as images are, also in folders that are links.

    Links that lead nowhere are among them.

    Raises:
        DataError: VR742 if a folder cannot be read.
    """
    from PIL import Image

    readable = {e for e, name in Image.registered_extensions().items() if name in Image.OPEN}
    known = readable | {".mpo"} | _OTHERS
    seen: set[tuple[int, int]] = set()
    found: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=_unreadable, followlinks=True):
        status = os.stat(place)  # noqa: PTH116
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder that it lies in
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        found += [
            Path(place, name)
            for name in names
            if Path(name).suffix.lower() in known and not name.startswith(".")
        ]
    return sorted(found)


def _unreadable(error: OSError) -> None:
    place = shown(error.filename, 200)
    raise DataError("VR742", f"cannot read the images in {place}: {error.strerror}") from error


def check_all(items: Iterable[T], check: Callable[[T], DataError | None]) -> None:
    """Reports what is wrong with the first 20,000 of some files together.

    Raises:
        DataError: about one, or about all of them.
    """
    raise_together([e for e in map(check, islice(items, _HEADS)) if e is not None])


def raise_together(errors: Iterable[DataError]) -> None:
    """Raises one error that tells of several files; ten of them by name.

    Raises:
        DataError: if there is anything wrong.
    """
    found = {error.message: error for error in errors}
    if not found:
        return
    first, *others = found.values()
    if others:
        named = [e.message if e.code == first.code else f"{e.code} {e.message}" for e in others]
        rest = [f"and {len(named) - _TOLD + 1} more"] if len(named) >= _TOLD else []
        first.notes = (*named[: _TOLD - 1], *rest, *first.notes)
    raise first
