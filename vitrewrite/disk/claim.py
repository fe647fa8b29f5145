"""One process at a time: who writes a place, and what is left of one that was killed.

A lock (`flock`) belongs to a process and goes with it, however it ends, so what is not locked is
not in use. On file systems without locks a mark says which process it was.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from ..errors import FileError
from ..text import shown

PATIENCE = 60.0  # seconds to wait for another process
# What is in a workplace, beside the mark.
GROWING, READY, OLD, GONE = "growing", "ready", "old", "gone"
_MARK, _TAKEN = "writing", "taken"
_PAUSE = 0.05
# What a file system says that has no locks, or, as NFS, none on folders.
_NO_LOCKS = {errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
_held: set[int] = set()
T = TypeVar("T")


def _let_go() -> None:
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):  # workers that we fork hold nothing when we are gone
    os.register_at_fork(after_in_child=_let_go)


@contextmanager
def claimed(folder: Path, target: Path, patience: float = 0.0) -> Iterator[None]:
    """Keeps a folder from everybody else who claims it; without locks it does nothing.

    Args:
        folder: the folder, which exists.
        target: what the user calls it.
        patience: how many seconds to wait for another process.

    Raises:
        FileError: VR735 if another process has it.
    """
    descriptor = _patiently(lambda: (_locked(folder),), target, patience, folder)[0]
    try:
        yield
    finally:
        _unlock(descriptor)


@contextmanager
def workplace(home: Path, target: Path, patience: float | None = None) -> Iterator[None]:
    """Makes and claims a workplace, and removes it at the end.

    What a killed process left in it is still there.

    Args:
        home: the workplace.
        target: what the user calls that which is written.
        patience: how many seconds to wait for another process; by default a minute.

    Raises:
        FileError: VR735 if another process works there, VR736 if it is something else.
    """
    patience = PATIENCE if patience is None else patience
    descriptor = _patiently(lambda: _entered(home), target, patience, home)[0]
    try:
        (home / _MARK).write_text(f"{os.getpid()} {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        clear(home)
        _unlock(descriptor)


def is_left(path: Path) -> bool:
    """Whether a hidden folder is a workplace, in use or left by a process that was killed."""
    if path.is_symlink() or not path.is_dir():
        return False
    return {p.name for p in path.iterdir()} <= {_MARK, _TAKEN, GROWING, READY, OLD, GONE}


def clear(path: Path) -> None:
    """Removes a file or folder, if there is one, with what is read-only in it."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    for name, folders, _ in os.walk(path):
        for each in folders:
            inner = Path(name, each)
            if not inner.is_symlink():
                with suppress(OSError):
                    inner.chmod(0o700)
    shutil.rmtree(path, ignore_errors=True)


def _patiently(attempt: Callable[[], T], target: Path, patience: float, home: Path) -> T:
    """What an attempt gives, made again while another process is in the way."""
    deadline = time.monotonic() + patience
    while True:
        with suppress(BlockingIOError):
            return attempt()
        if time.monotonic() >= deadline:
            raise FileError(
                "VR735",
                f"another process is writing {shown(target, 200)} at this moment",
                notes=_owner(home),
                suggestion="wait until it is done, or give another place with --out",
            )
        time.sleep(_PAUSE)


def _owner(home: Path) -> list[str]:
    """Who works in a workplace, if it says so."""
    try:
        process, _, host = (home / _MARK).read_text(encoding="utf-8").partition(" ")
    except (OSError, ValueError):
        return []
    name = shown(home, 200)
    return [f"process {shown(process, 20)} on {shown(host)}; if it is gone, remove {name}"]


def _entered(home: Path) -> tuple[int | None]:
    """The lock of a workplace that is made if it is not there."""
    try:
        home.mkdir(0o700)
        made = True
    except FileExistsError:
        made = False
    try:
        if not is_left(home):
            raise FileError(
                "VR736",
                f"{shown(home, 200)} is in the way, and was not made by vitrewrite",
                suggestion="give it another name, or remove it",
            )
        descriptor = _locked(home)
        if descriptor is None and not made and not _taken_over(home):
            raise BlockingIOError
    except FileNotFoundError as error:  # its owner removed it just now
        raise BlockingIOError from error
    return (descriptor,)


def _locked(folder: Path) -> int | None:
    """The lock of a folder; None where there are no locks.

    Raises:
        BlockingIOError: if another process has it.
        FileNotFoundError: if the folder went away.
    """
    try:
        import fcntl
    except ImportError:
        return None
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), os.stat(folder)):  # noqa: PTH116
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, OSError) and error.errno in _NO_LOCKS:
            return None
        raise
    _held.add(descriptor)
    return descriptor


def _unlock(descriptor: int | None) -> None:
    if descriptor in _held:
        _held.discard(descriptor)
        os.close(descriptor)


def _taken_over(home: Path) -> bool:
    """Without locks: whether the process that made a workplace is gone, and we have it now."""
    mark = home / _MARK
    try:
        process, _, host = mark.read_text(encoding="utf-8").partition(" ")
        if host != socket.gethostname():
            return False
        os.kill(int(process), 0)
    except ProcessLookupError:
        pass
    except (OSError, ValueError, OverflowError):
        return False
    else:
        return False
    with suppress(FileNotFoundError):  # of several, one takes the mark away
        mark.replace(home / _TAKEN)
        return True
    return False
