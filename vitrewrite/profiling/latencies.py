"""How long stitches take: a table that was measured here, or on the machine that they are for."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import FileError
from ..storage.hashing import parsed, read_bytes
from ..text import first_line


@dataclass(frozen=True)
class Latencies:
    """What stitches take, each taken out and folded.

    Attributes:
        ms: milliseconds of a batch, by number of the stitch: medians over the rounds.
        batch: images in it.
        rounds: timed runs of each, in turn with the others.
        device: where they ran.
        threads: of torch on a CPU.
    """

    ms: tuple[float, ...]
    batch: int = 1
    rounds: int = 1
    device: str = ""
    threads: int = 0

    def to_json(self) -> dict[str, Any]:
        """It as data."""
        return {**dataclasses.asdict(self), "ms": list(self.ms)}

    @classmethod
    def of(cls, data: Any, count: int, source: str) -> Latencies:
        """What data says of so many stitches.

        Raises:
            FileError: VR541 if it is no such table, or one of other stitches.
        """
        try:
            ms = tuple(map(float, data["ms"]))
            found = cls(**{**data, "ms": ms})
        except (TypeError, KeyError, ValueError) as error:
            raise cls._wrong(source, 'it is no object such as {"ms": [3.1, 4.5]}') from error
        if len(ms) != count:
            raise cls._wrong(source, f"it has {len(ms)} numbers, and there are {count} stitches")
        odd = next((value for value in ms if not (math.isfinite(value) and value > 0)), None)
        if odd is not None:
            raise cls._wrong(source, f"{odd} ms is no time")
        return found

    @classmethod
    def read(cls, path: Path, count: int) -> Latencies:
        """A table in a JSON file.

        Raises:
            FileError: VR541 if it cannot be read, or as `of`.
        """
        try:
            data = parsed(read_bytes(path))
        except (OSError, ValueError) as error:
            raise cls._wrong(str(path), first_line(error)) from error
        return cls.of(data, count, str(path))

    @staticmethod
    def _wrong(source: str, why: str) -> FileError:
        return FileError(
            "VR541",
            f"'{source}' is no table of latencies of these stitches: {why}",
            suggestion="'vitrewrite show stitches DIR --latency FILE' measures and writes one",
        )
