"""Bytes of files with their hash, read once; JSON that notices any change of itself."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import FileError

DIGEST = "digest"
_PIECE = 1 << 24


def digest_of(*parts: bytes | bytearray | memoryview) -> str:
    """The hash of bytes: blake2b of 20 bytes, in hexadecimal."""
    digest = hashlib.blake2b(digest_size=20)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def read_bytes(path: Path) -> bytearray:
    """The content of a regular file.

    Raises:
        OSError: if it cannot be read; a pipe or a device is not waited for.
    """
    # Opening a pipe would wait for a writer; of regular files the flag says nothing.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123 - by its descriptor
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        content = bytearray(found.st_size)
        view, done = memoryview(content), 0
        while done < len(view) and (count := file.readinto(view[done : done + _PIECE])):
            done += count
        if done < len(view) or file.read(1):
            raise OSError(errno.EIO, "it changed while it was read", str(path))
    return content


def read_checked(path: Path, digest: str) -> bytearray:
    """The bytes of a file, if they have this hash.

    Raises:
        FileError: VR715 if they have not, or cannot be read.
    """
    try:
        content = read_bytes(path)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise FileError(
            "VR715", f"cannot read '{path}', which the folder needs: {reason}"
        ) from error
    if digest_of(content) != digest:
        raise changed(path)
    return content


def changed(path: Path | str) -> FileError:
    """VR715, for a file that is not what was written."""
    return FileError(
        "VR715", f"'{path}' is not what was written: it was changed, or damaged",
        suggestion="write the folder again with vitrewrite.emit; "
        "'vitrewrite lower DIR --delta FILE' takes another delta",
    )  # fmt: skip


def parsed(content: bytes | bytearray) -> Any:
    """JSON.

    Raises:
        ValueError: if it is none, or nested too deeply.
    """
    try:
        return json.loads(content.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def sealed(value: Mapping[str, Any]) -> str:
    """The text of an object with a digest of itself in it."""
    body = {k: v for k, v in value.items() if k != DIGEST}
    return _text({**body, DIGEST: digest_of(_text(body).encode())})


def unsealed(content: bytes | bytearray) -> dict[str, Any]:
    """The object of a text that `sealed` made, without the digest.

    Raises:
        ValueError: if one bit of it is another.
    """
    value = parsed(content)
    if not isinstance(value, dict):
        raise ValueError("it is no object")
    try:
        same = sealed(value).encode() == content
    except (TypeError, RecursionError, UnicodeError) as error:
        raise ValueError("it was changed since it was written") from error
    if not same:
        raise ValueError("it was changed since it was written")
    return {k: v for k, v in value.items() if k != DIGEST}


def _text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2) + "\n"
