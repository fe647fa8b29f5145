"""Single files that are replaced as a whole."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .claim import GROWING, clear, workplace
from .places import may_write, open_to_readers, place_of, reported, workplace_of


@contextmanager
def replacing_file(target: Path) -> Iterator[Path]:
    """Where to write what becomes `target` at the end, if nothing went wrong.

    A link stays a link, and a file that is replaced keeps its permissions.

    Raises:
        FileError: VR702, VR735 if another process is writing the file, VR736 for something that is
            not ours where it grows.
    """
    place = place_of(target)
    with reported(target):
        _check_place(place)
        home = workplace_of(place)
        with workplace(home, target):
            growing = home / GROWING
            clear(growing)
            yield growing
            shutil.copymode(place, growing) if place.exists() else open_to_readers(growing)
            growing.replace(place)


def check_file(target: Path) -> None:
    """Refuses a file that cannot be written, before the work is done.

    Raises:
        FileError: VR702.
    """
    place = place_of(target)
    with reported(target):
        _check_place(place)


def _check_place(place: Path) -> None:
    if place.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if place.exists() and not place.is_file():
        raise OSError(errno.EINVAL, "it is no regular file")
    if place.exists() and not os.access(place, os.W_OK):
        raise PermissionError(errno.EACCES, "it is read-only")
    if not place.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    may_write(place.parent)


def write_text(target: Path, text: str) -> None:
    """Writes a file, all or nothing.

    Raises:
        FileError: VR702 if it cannot be written.
    """
    with replacing_file(target) as growing:
        growing.write_text(text, encoding="utf-8")
