"""All or nothing on disk: a folder or file is replaced as a whole, or stays as it was."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import FileError, shown

LOCK = "lock.json"
RUN = "tune.json"  # in folders of `tune`
MADE_BY = "vitrewrite"


def check_target(target: Path) -> None:
    """Refuses a folder that vitrewrite did not make, or that cannot be written.

    Raises:
        FileError: VR701 or VR702.
    """
    with reported(target):
        _check_place(target, _place(target))


def _place(target: Path) -> Path:
    """Where a folder lies really; a link to it stays a link."""
    return Path(os.path.realpath(target))


def _check_place(target: Path, place: Path) -> None:
    here = Path.cwd()
    if place in (here, *here.parents):
        what = "the folder that we are in"
    elif place.is_dir():
        trained = (place / RUN).exists()
        if not trained and (not any(place.iterdir()) or _is_ours(place)):
            return
        what = "a folder of 'tune'" if trained else "a folder that vitrewrite did not make"
    elif place.exists():
        what = "a file that vitrewrite did not make"
    else:
        parent = next(p for p in place.parents if p.exists())
        if not parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"'{parent}' is a file")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"no permission to write to '{parent}'")
        return
    raise FileError(
        "VR701",
        f"'{target}' is {what}, and is left alone",
        suggestion="give another folder with --out",
    )


def _is_ours(folder: Path) -> bool:
    try:
        text = (folder / LOCK).read_text(encoding="utf-8")
        return bool(json.loads(text)["made_by"] == MADE_BY)
    except (ValueError, KeyError, TypeError, OSError, RecursionError):
        return False


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `target` when everything is written."""
    with reported(target):
        place = _place(target)
        old = place.with_name(f".{place.name}.old")
        if not place.exists() and _is_ours(old):
            old.rename(place)  # a run was killed between the two renames of `_swap`
        _check_place(target, place)
        made = [p for p in place.parents if not p.exists()]  # the innermost first
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        with reported(target):
            yield temporary
            open_to_readers(temporary)
            _swap(temporary, place, old)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if not place.exists():
            for parent in made:
                with suppress(OSError):
                    parent.rmdir()


def _swap(temporary: Path, place: Path, old: Path) -> None:
    if not place.exists():
        temporary.rename(place)
        return
    if _is_ours(old):  # left by a run that was killed
        shutil.rmtree(old)
    place.rename(old)
    try:
        temporary.rename(place)
    except BaseException:
        old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def reported(target: Path) -> Iterator[None]:
    """What the system refuses, as an error of ours."""
    from safetensors import SafetensorError

    if "\0" in str(target):
        raise FileError("VR702", f"cannot write {shown(target)}: no file name holds a NUL")
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise FileError("VR702", f"cannot write '{target}': {reason}") from error
    except SafetensorError as error:  # its own kind of error for a full disk
        raise FileError("VR702", f"cannot write '{target}': {error}") from error


def open_to_readers(path: Path) -> None:
    """Temporary folders and safetensors files are private; ours are as the umask says."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
    for file in path.glob("*.safetensors"):
        open_to_readers(file)


@contextmanager
def replacing_file(target: Path) -> Iterator[Path]:
    """A temporary file beside `target` that becomes it at the end, if nothing went wrong."""
    with reported(target):
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        os.close(descriptor)
    temporary = Path(name)
    try:
        with reported(target):
            yield temporary
            open_to_readers(temporary)
            temporary.replace(target)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_file(target: Path) -> None:
    """Refuses a file that cannot be written, before the work is done.

    Raises:
        FileError: VR702.
    """
    with reported(target):
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        if not os.access(target.parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"'{target.parent}' takes no files")


def write_text(target: Path, text: str) -> None:
    """Writes a file, all or nothing.

    Raises:
        FileError: VR702 if it cannot be written.
    """
    with replacing_file(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
