"""Bytes of files with their hash, read once; JSON that notices any change of itself."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
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


def content_digest(content: bytes | bytearray, header: bytes | None = None) -> str:
    """The hash of a file's content.

    Of a safetensors file it is the hash of its header and of the hash of each tensor, so that who
    hashes tensors for something else has that of the file, too; of any other the hash of all of it.

    Args:
        content: of the file.
        header: another header to count in place of its own.
    """
    own, *tensors = _pieces(content)
    return digest_of(header or own, *(_bits(piece) for piece in tensors))


def _bits(piece: bytes | bytearray | memoryview) -> bytes:
    return hashlib.blake2b(piece, digest_size=20).digest()


def _pieces(content: bytes | bytearray) -> list[memoryview]:
    """The header of a safetensors file and its tensors; else the whole content."""
    view = memoryview(content)
    start = 8 + int.from_bytes(view[:8], "little")
    if len(view) < 8 or not 8 < start <= len(view) or view[8] != ord("{"):
        return [view]
    try:
        header = parsed(bytes(view[8:start]))
        spans = sorted(v["data_offsets"] for k, v in header.items() if k != "__metadata__")
        ends = [0, *(stop for _, stop in spans)]
        whole = [begin for begin, _ in spans] == ends[:-1] and start + ends[-1] == len(view)
    except (ValueError, KeyError, TypeError, AttributeError):
        return [view]
    return [view[:start], *(view[start + a : start + b] for a, b in spans)] if whole else [view]


_KNOWN: ContextVar[dict[Any, tuple[Any, bytes]] | None] = ContextVar("known", default=None)


@contextmanager
def hashed_once() -> Iterator[None]:
    """Within, no tensor is hashed twice; none may be changed meanwhile."""
    token = _KNOWN.set({})
    try:
        yield
    finally:
        _KNOWN.reset(token)


def tensor_digest(tensor: Any, raw: memoryview) -> bytes:
    """The hash of a tensor's bits.

    Args:
        tensor: any tensor.
        raw: its bytes.
    """
    known = _KNOWN.get()
    if known is None:
        return _bits(raw)
    key = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())
    if key not in known:
        known[key] = tensor, _bits(raw)  # the tensor is kept, so that no other gets its place
    return known[key][1]


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
    if content_digest(content) != digest:
        raise changed(path)
    return content


def changed(path: Path | str) -> FileError:
    """VR715, for a file that is not what was written."""
    return FileError(
        "VR715",
        f"'{path}' is not what was written: it was changed, or damaged",
        suggestion="write the folder again with vitrewrite.emit; "
        "'vitrewrite lower DIR --delta FILE' takes another delta",
    )


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
