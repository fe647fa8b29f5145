"""Folders that are replaced as a whole."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ..errors import FileError
from ..text import shown
from .claim import GONE, GROWING, OLD, READY, claimed, clear, workplace
from .exchange import exchanged
from .places import (
    LOCK,
    RUN,
    WORKPLACE,
    listed,
    may_write,
    open_to_readers,
    place_of,
    reported,
    workplace_of,
)
from .strangers import keep, strangers


def check_target(target: Path) -> None:
    """Refuses a folder that vitrewrite did not make, or that cannot be written.

    Raises:
        FileError: VR701 or VR702.
    """
    place = place_of(target)
    with reported(target):
        _check_place(target, place)


def _check_place(target: Path, place: Path) -> None:
    here = Path.cwd()
    if place in (here, *here.parents):
        what = "the folder that we are in"
    elif place.is_dir():
        trained = (place / RUN).exists()
        if not trained and (listed(place) is not None or not any(place.iterdir())):
            may_write(place)
            may_write(place.parent)
            return
        what = "a folder of 'tune'" if trained else "a folder that vitrewrite did not make"
    elif os.path.lexists(place):
        what = "a file that vitrewrite did not make"
    else:
        parent = next(p for p in place.parents if os.path.lexists(p))
        if not parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{shown(parent, 200)} is no folder")
        may_write(parent)
        return
    raise FileError(
        "VR701",
        f"{shown(target, 200)} is {what}, and is left alone",
        suggestion="give another folder with --out",
    )


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `target` when everything is written.

    Files of others in `target` stay; those that its lock file lists go.

    Raises:
        FileError: VR701, VR702, VR734 for a file of somebody else in the way, VR735 if another
            process is writing the folder, VR736 for a folder that is not ours where it grows.
    """
    place = place_of(target)
    with ExitStack() as stack:
        with reported(target):
            _check_place(target, place)
            stack.callback(_remove_empty, [p for p in place.parents if not p.exists()], place)
            place.parent.mkdir(parents=True, exist_ok=True)
            home = workplace_of(place)
            stack.enter_context(workplace(home, target))
            _recover(home, place)
            _check_place(target, place)  # it may have changed while we waited
            if place.exists():
                stack.enter_context(claimed(place, target))
            growing = home / GROWING
            growing.mkdir()
        with reported(target):
            yield growing
            open_to_readers(growing)
            if place.exists():
                shutil.copymode(place, growing)
                keep(place, growing)
            growing.rename(home / READY)
            _swap(home, place)
            _rescue(home, place)


@contextmanager
def filling(folder: Path, kept: frozenset[str] = frozenset()) -> Iterator[Path]:
    """A temporary folder whose files replace those of the same name in one that holds other things.

    The lock file goes first and comes last, so that a folder which has one is whole.

    Args:
        folder: that folder.
        kept: names of files that the new lock file lists too, and which are there already.

    Raises:
        FileError: VR702, VR735 or VR736.
    """
    home = folder / f".files{WORKPLACE}"
    with reported(folder), workplace(home, folder):
        _recover(home, folder)
        growing = home / GROWING
        growing.mkdir()
        yield growing
        open_to_readers(growing)
        stale = (listed(folder) or frozenset()) & {p.name for p in folder.iterdir() if p.is_file()}
        (folder / LOCK).unlink(missing_ok=True)
        for name in stale - kept - {LOCK} - {p.name for p in growing.iterdir()}:
            (folder / name).unlink()
        for path in sorted(growing.iterdir(), key=lambda p: (p.name == LOCK, p.name)):
            path.replace(folder / path.name)


def _swap(home: Path, place: Path) -> None:
    """Puts what is ready into its place; what was there is in the workplace then."""
    ready = home / READY
    if not place.exists():
        ready.rename(place)
    elif not exchanged(ready, place):
        place.rename(home / OLD)
        try:
            ready.rename(place)
        except BaseException:
            (home / OLD).rename(place)
            raise


def _recover(home: Path, place: Path) -> None:
    """Makes good what a killed process left, so that the workplace is empty."""
    if (home / OLD).is_dir() and not place.exists():
        (home / OLD).rename(place)  # it was killed between two renames
    if place.is_dir():
        _rescue(home, place)
    for name in (GROWING, READY, OLD, GONE):
        clear(home / name)


def _rescue(home: Path, place: Path) -> None:
    """Moves what others put into the replaced folder at the last moment.

    It has another name before it is removed: without its lock file, all that is in it were theirs.
    """
    for left in (home / READY, home / OLD):
        if left.is_dir():
            for stranger in strangers(left):
                if not os.path.lexists(place / stranger.name):
                    stranger.rename(place / stranger.name)
            clear(home / GONE)
            left.rename(home / GONE)


def _remove_empty(made: list[Path], place: Path) -> None:
    """Takes back the folders that were made for a place, innermost first, if it came to nothing."""
    if not place.exists():
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
