"""Reading files that a user names: never one that blocks, and JSON that cannot break the parser."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any


def regular(path: Path | str) -> Path:
    """The path, if a regular file is there: opening a pipe blocks, and a device may never end.

    Raises:
        OSError: if there is none, or something else.
        ValueError: if no file can have the name.
    """
    mode = os.stat(path).st_mode  # noqa: PTH116 - `Path.stat` in one call for texts too
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise OSError(f"it is {kind}")
    return Path(path)


def read_json(path: Path) -> Any:
    """What a file of JSON holds.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not UTF-8, no JSON, or nested deeper than any file of ours.
    """
    return parse_json(regular(path).read_text(encoding="utf-8"))


def parse_json(text: str) -> Any:
    """What a text of JSON says.

    Raises:
        ValueError: as `read_json`.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
