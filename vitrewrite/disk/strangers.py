"""What others have put into a folder of ours, which is theirs to keep."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ..errors import FileError
from ..text import shown
from .places import listed

_CACHE = "__pycache__"  # of the `model.py` that goes


def strangers(folder: Path) -> list[Path]:
    """What the lock file of a folder does not list: files, links and folders."""
    names = listed(folder) or frozenset()
    return [
        path
        for path in sorted(folder.iterdir())
        if path.name != _CACHE and (path.name not in names or _is_folder(path))
    ]


def keep(old: Path, new: Path) -> None:
    """Puts what is not ours in `old` into `new` too, without copying what can have two names.

    Raises:
        FileError: VR734 for what cannot be kept.
    """
    for path in strangers(old):
        if os.path.lexists(new / path.name):
            raise FileError(
                "VR734",
                f"{shown(path, 200)} is not ours, and would be overwritten",
                suggestion="move it, or give another folder with --out",
            )
        try:
            _link(path, new / path.name, old.stat().st_dev)
        except OSError as error:
            reason = error.strerror or error
            raise FileError(
                "VR734",
                f"cannot keep {shown(path, 200)}, which is not ours: {reason}",
                suggestion="move it, or give another folder with --out",
            ) from error


def _link(path: Path, new: Path, device: int) -> None:
    if path.lstat().st_dev != device:  # what is mounted must not be removed with the old folder
        raise OSError(f"{shown(path, 200)} lies on another file system")
    if _is_folder(path):
        new.mkdir()
        for inner in path.iterdir():
            _link(inner, new / inner.name, device)
        shutil.copystat(path, new)
        return
    try:
        os.link(path, new, follow_symlinks=False)
    except (OSError, NotImplementedError):  # file systems without links
        shutil.copy2(path, new, follow_symlinks=False)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
