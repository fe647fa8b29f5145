"""Where things lie, what is ours, and what the system refuses."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import FileError
from ..text import shown

LOCK = "lock.json"
RUN = "tune.json"  # in folders of `tune`
MADE_BY = "vitrewrite"
WORKPLACE = ".vitrewrite"  # how the name of a workplace ends
_LONGEST = 255  # bytes of a file name


def place_of(target: Path) -> Path:
    """Where a folder or file lies really; a link to it stays a link.

    Raises:
        FileError: VR702 for a loop of links, VR737 for what cannot be the name of a file.
    """
    check_name(target)
    with reported(target):
        place = Path(os.path.realpath(target))
        if place.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        return place


def check_name(name: str | Path) -> None:
    """Whether files can be named so at all.

    Raises:
        FileError: VR737 if not.
    """
    try:
        reason = "it holds a NUL" if b"\0" in os.fsencode(name) else None
    except UnicodeEncodeError:
        reason = "it holds half of a surrogate pair"
    if reason:
        raise FileError("VR737", f"{shown(name, 200)} cannot be the name of a file: {reason}")


def workplace_of(place: Path) -> Path:
    """The hidden folder beside a place in which it grows."""
    name = f".{place.name}{WORKPLACE}"
    if len(os.fsencode(name)) > _LONGEST:
        import hashlib

        digest = hashlib.blake2b(os.fsencode(place.name), digest_size=16).hexdigest()
        name = f".{digest}{WORKPLACE}"
    return place.with_name(name)


def listed(folder: Path) -> frozenset[str] | None:
    """Names of the files that were written with the lock file of a folder; None if not by us."""
    try:
        lock = json.loads((folder / LOCK).read_text(encoding="utf-8"))
        if lock["made_by"] != MADE_BY:
            return None
        return frozenset([LOCK, *map(str, lock.get("files", ()))])
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
        return None


def may_write(folder: Path) -> None:
    """Whether entries of a folder can be made and removed.

    Raises:
        PermissionError: if not.
    """
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"no permission to write to {shown(folder, 200)}")


@contextmanager
def reported(target: Path) -> Iterator[None]:
    """What the system refuses, as an error of ours."""
    from safetensors import SafetensorError

    try:
        yield
    except OSError as error:
        raise _refused(target, error.strerror or error) from error
    except SafetensorError as error:  # its own kind of error for a full disk
        raise _refused(target, error) from error


def _refused(target: Path, reason: object) -> FileError:
    return FileError("VR702", f"cannot write {shown(target, 200)}: {reason}")


def open_to_readers(path: Path) -> None:
    """Temporary folders and safetensors files are private; ours are as the umask says."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
    for file in path.glob("*.safetensors"):
        open_to_readers(file)
