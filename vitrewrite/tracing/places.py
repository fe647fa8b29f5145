"""Lines of the user's source, for messages."""

from __future__ import annotations

import inspect
import linecache
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .history import PastCall

_FOREIGN = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
_LIBRARY = str(Path(inspect.__file__).parent)  # Python's own, with what is installed below it


def here() -> str | None:
    """The line that runs now, outside of torch, the tracer, numpy and Python's own library."""
    frame = sys._getframe(1)
    while frame is not None and _is_foreign(frame.f_code.co_filename):
        frame = frame.f_back  # type: ignore[assignment]
    return None if frame is None else _line(frame.f_code.co_filename, frame.f_lineno)


def _is_foreign(file: str) -> bool:
    built_in = file.startswith(_LIBRARY) and "-packages" not in file
    return built_in or file.startswith(_FOREIGN) or "/numpy/" in file


def of_forward(calls: Iterable[PastCall]) -> str:
    """Where the forward of a call begins."""
    for call in calls:
        code = getattr(inspect.unwrap(call.forward), "__code__", None)
        if code is not None:
            return _line(code.co_filename, code.co_firstlineno)
    return "its forward"


def _line(file: str, line: int) -> str:
    text = linecache.getline(file, line).strip()
    said = f": `{text}`" if text else ""
    return f"{Path(file).name}:{line}{said}"
