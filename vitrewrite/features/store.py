"""What the frozen part of a model yields, on disk: a file for each value, a row for each image.

A folder holds values of the same images, weights and transforms; which value a file holds is told
by the program that makes it. `features.json` lists the files, has a hash of itself, and is written
last: a file that it does not list is not there.
"""

from __future__ import annotations

import errno
import mmap
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..disk import MADE_BY, replacing_file, reported, workplace
from ..disk.claim import GROWING
from ..disk.places import place_of, workplace_of
from ..errors import FileError
from ..storage.hashing import read_bytes, sealed, unsealed
from ..text import first_line, megabytes, shown
from ..version import __version__
from .cut import Crossing

INDEX, LABELS = "features.json", "labels"
_SUGGESTION = "remove the folder, or give another one with tune.cache_at"


@dataclass(frozen=True)
class Stored:
    """A value on disk.

    Attributes:
        shape: of one image.
        dtype: on disk.
        computed: that the model computes in.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    computed: torch.dtype

    def bytes(self, rows: int) -> int:
        """The size of its file."""
        return rows * self.dtype.itemsize * torch.Size(self.shape).numel()

    def to_json(self) -> dict[str, Any]:
        """It in the index."""
        types = {"dtype": str(self.dtype)[6:], "computed": str(self.computed)[6:]}
        return {"shape": list(self.shape), **types}

    @classmethod
    def from_json(cls, data: Any) -> Stored:
        """The value of `to_json`."""
        types = (getattr(torch, data[name]) for name in ("dtype", "computed"))
        return cls(tuple(map(int, data["shape"])), *types)


class FeatureStore:
    """A folder of values.

    Args:
        folder: where they are.
        key: texts that say of which weights, images and transforms they are.
        rows: how many images there are.
    """

    def __init__(self, folder: Path, key: Mapping[str, str], rows: int) -> None:
        self.folder, self.key, self.rows = folder, dict(key), rows

    @property
    def known(self) -> dict[str, Stored]:
        """What is there, by digest.

        Raises:
            FileError: VR554 if it is of something else, VR555 if it cannot be read.
        """
        index = self.folder / INDEX
        try:
            found = unsealed(read_bytes(index))
            key, rows = found["key"], found["rows"]
            values = {k: Stored.from_json(v) for k, v in found["values"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._broken(index, first_line(error)) from error
        self._expect_same(key, rows)
        for name, value in values.items():
            self._expect_whole(self.folder / name, value.bytes(self.rows))
        return values

    def _expect_same(self, key: Mapping[str, str], rows: int) -> None:
        names = sorted(key.keys() | self.key.keys())
        odd = {k: (key.get(k), self.key.get(k)) for k in names if key.get(k) != self.key.get(k)}
        if not odd and rows != self.rows:
            odd = {"images": (f"{rows} images", f"{self.rows} images")}
        if odd:
            raise FileError(
                "VR554",
                f"the features in {shown(self.folder, 200)} are of other {next(iter(odd))}",
                notes=[f"{k} was {shown(was)}, is {shown(now)}" for k, (was, now) in odd.items()],
                suggestion=_SUGGESTION,
            )

    def _expect_whole(self, path: Path, size: int) -> None:
        try:
            there = path.stat().st_size
        except OSError as error:
            raise self._broken(path, (error.strerror or str(error)).lower()) from error
        if there != size:
            raise self._broken(path, f"it has {there:,} bytes of {size:,}")

    def _broken(self, path: Path, reason: str) -> FileError:
        message = f"cannot read the features in {shown(path, 200)}: {reason}"
        return FileError("VR555", message, suggestion=_SUGGESTION)

    @contextmanager
    def adding(self, values: Mapping[str, Stored]) -> Iterator[FeatureWriter]:
        """Writes further values, row after row; they are there when the body is through.

        Raises:
            FileError: VR556 if the disk has no room for them, VR702 if it refuses them, VR735 if
                another process writes there.
        """
        place = place_of(self.folder)
        with reported(self.folder):
            place.parent.mkdir(parents=True, exist_ok=True)
            _expect_room(place, sum(v.bytes(self.rows) for v in values.values()))
            home = workplace_of(place)
            with workplace(home, self.folder), ExitStack() as files:
                growing = home / GROWING
                growing.mkdir()
                opened = {k: files.enter_context((growing / k).open("wb")) for k in values}
                with _told(self.folder):
                    yield FeatureWriter(opened, values)
                    files.close()
                place.mkdir(exist_ok=True)
                known = self.known
                for name, value in values.items():
                    self._expect_whole(growing / name, value.bytes(self.rows))
                    (growing / name).replace(place / name)
                self._list({**known, **values})

    def _list(self, values: Mapping[str, Stored]) -> None:
        record = {
            "made_by": MADE_BY, "vitrewrite": __version__, "key": self.key, "rows": self.rows,
            "values": {k: v.to_json() for k, v in sorted(values.items())},
        }  # fmt: skip
        with replacing_file(self.folder / INDEX) as growing:
            growing.write_bytes(sealed(record).encode())

    def read(self, name: str, value: Stored) -> torch.Tensor:
        """A value of all images, mapped into memory: what is not read stays on the disk.

        Raises:
            FileError: VR555.
        """
        path, size = self.folder / name, value.bytes(self.rows)
        self._expect_whole(path, size)
        if not size:
            return torch.empty((self.rows, *value.shape), dtype=value.dtype)
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
        return torch.frombuffer(mapped, dtype=value.dtype).view(self.rows, *value.shape)

    def remove(self) -> None:
        """Removes what we wrote, and the folder if nothing else is in it."""
        try:
            names = [*self.known, INDEX]
        except FileError:
            names = []
        for name in reversed(names):  # the index first: what it does not list is not there
            (self.folder / name).unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()


@dataclass
class FeatureWriter:
    """Files that grow row by row."""

    files: Mapping[str, BinaryIO]
    values: Mapping[str, Stored]

    def write(self, rows: Mapping[str, torch.Tensor]) -> None:
        """Rows of every value.

        Raises:
            OSError: if they cannot be written.
        """
        for name, tensor in rows.items():
            plain = tensor.detach().to("cpu", self.values[name].dtype).contiguous()
            self.files[name].write(plain.flatten().view(torch.uint8).numpy().data)


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """A full disk, as an error of ours."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _full(folder, "it is full") from error


def _expect_room(place: Path, size: int) -> None:
    free = shutil.disk_usage(place.parent).free
    if size > free:
        raise _full(place, f"they take {megabytes(size)}, and {megabytes(free)} are free")


def _full(folder: Path, reason: str) -> FileError:
    return FileError(
        "VR556",
        f"no room for the features in {shown(folder, 200)}: {reason}",
        suggestion="give another folder with tune.cache_at, or take tune.cache_dtype=bf16",
    )


def stored(crossing: Crossing, computed: torch.dtype, *, halved: bool) -> Stored:
    """How a value is kept.

    Args:
        crossing: the value.
        computed: what the model computes it in.
        halved: whether fractions of more than two bytes are kept as bfloat16.
    """
    wide = computed.is_floating_point and computed.itemsize > 2
    return Stored(crossing.shape, torch.bfloat16 if halved and wide else computed, computed)


def missing(known: Mapping[str, Stored], wanted: Sequence[str]) -> list[str]:
    """Digests of values that are not there."""
    return [digest for digest in wanted if digest not in known]
