"""The lock file of a folder, and the files that it answers for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..disk import LOCK, MADE_BY
from ..errors import FileError, VitrewriteError, raise_all
from ..language.inputs import read_shapes
from ..storage.hashing import parsed, read_bytes, read_checked, sealed, unsealed
from ..text import first_line

PROGRAM, TABLES = "program.json", "program.safetensors"
DELTA, WEIGHTS, ORIGINALS = "delta.safetensors", "weights.safetensors", "originals.safetensors"

# What has to be in a lock file.
_FIELDS = {
    "lowered": bool, "spec_name": str, "spec": str, "spec_hash": str, "places": list, "model": str,
    "model_options": dict, "weights": str, "seed": int, "allocations": dict,
    "base_fingerprint": str, "files": dict,
}  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9_][\w.\-]*", re.ASCII)
_HASH = re.compile(r"[0-9a-f]{40}")
# Who ships a lowered model may leave out what turns it back.
_OPTIONAL = {ORIGINALS}


@dataclass(frozen=True)
class Folder:
    """A folder that vitrewrite wrote.

    Attributes:
        path: where it is.
        lock: what its lock file says.
    """

    path: Path
    lock: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path) -> Folder:
        """Reads the lock file.

        Raises:
            FileError: VR703 if there is none, or one bit of it was changed.
        """
        reason = "it has no readable lock.json"
        try:
            lock = unsealed(read_bytes(path / LOCK))
            if lock.get("made_by") == MADE_BY and _is_lock(lock):
                return cls(path, lock)
            reason = "its lock.json is not of this version"
        except OSError as error:
            reason = f"{LOCK}: {(error.strerror or str(error)).lower()}"
        except ValueError as error:
            reason = f"{LOCK}: {first_line(error)}"
        message = f"'{path}' is no folder that vitrewrite wrote, or was changed since"
        raise FileError("VR703", message, notes=[reason])

    def has(self, name: str) -> bool:
        """Whether a file is one of the folder's; one that may be left out has to be there."""
        return name in self.lock["files"] and (name not in _OPTIONAL or (self.path / name).exists())

    def digest(self, name: str) -> str:
        """What the hash of a file has to be.

        Raises:
            FileError: VR715 if the folder was written without it.
        """
        if name not in self.lock["files"]:
            raise FileError("VR715", f"'{self.path}' was written without {name}")
        return str(self.lock["files"][name])

    def read(self, name: str) -> bytearray:
        """The bytes of a file, which are those that were written.

        Raises:
            FileError: VR715 if they are not.
        """
        return read_checked(self.path / name, self.digest(name))

    def json(self, name: str) -> Any:
        """The content of a JSON file.

        Raises:
            FileError: VR715 as `read`, VR703 if it is no JSON.
        """
        try:
            return parsed(self.read(name))
        except ValueError as error:
            message = f"cannot read '{self.path / name}': {first_line(error)}"
            raise FileError("VR703", message) from error

    def check(self) -> int:
        """Reads every file; how many there are.

        Raises:
            FileError: VR715 for every file that is not what was written, together.
        """
        errors: list[VitrewriteError] = []
        names = [name for name in self.lock["files"] if self.has(name)]
        for name in names:
            try:
                self.read(name)
            except FileError as error:
                errors.append(error)
        raise_all(errors)
        return len(names)


def lock_text(lock: Mapping[str, Any]) -> str:
    """The text of a lock file."""
    return sealed(lock)


def _is_lock(lock: Mapping[str, Any]) -> bool:
    typed = all(type(lock.get(key)) is kind for key, kind in _FIELDS.items())
    if not typed or not all(map(_is_place, lock["places"])) or not _is_input(lock.get("input")):
        return False
    if not isinstance(lock.get("spec_folder", ""), str):
        return False
    return 0 <= lock["seed"] < 1 << 64 and all(
        _NAME.fullmatch(name)
        and name != LOCK
        and isinstance(digest, str)
        and _HASH.fullmatch(digest)
        for name, digest in lock["files"].items()
    )


def _is_input(stated: Any) -> bool:
    """Whether it says what the model is called with, or nothing."""
    if stated is None:
        return True
    try:
        return isinstance(stated, str) and bool(read_shapes(stated))
    except ValueError:
        return False


def _is_place(place: Any) -> bool:
    return isinstance(place, list) and list(map(type, place)) == [str, int]
