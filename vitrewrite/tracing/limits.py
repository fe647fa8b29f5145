"""Limits of dtypes: `torch.finfo(x.dtype).max` stays that of whatever `x` is when a model runs.

Those of a dtype that turns out to be a constant become constants again: see `dtypes`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from .numbers import make

if TYPE_CHECKING:
    from .frame import Frame
    from .recorder import Recorder

_NUMBERS = ("max", "min", "eps", "tiny", "smallest_normal", "resolution")


class Limits:
    """What `torch.finfo` yields for a dtype in the forward of `frame`."""

    def __init__(self, frame: Frame, dtype: torch.dtype, known: torch.finfo) -> None:
        self._frame, self._dtype, self._known = frame, dtype, known

    def __getattr__(self, name: str) -> Any:
        value, frame = getattr(self._known, name), self._frame
        if name not in _NUMBERS:
            return value

        def recipe() -> Any:
            limits = frame.emit_function(type(self._known), (frame.arg(self._dtype),))
            return frame.emit_function(getattr, (limits, name))

        return make(frame, value, (value,) * frame.recorder.values.count, recipe)


@contextmanager
def tracked_limits(recorder: Recorder) -> Iterator[None]:
    """Lets `torch.finfo` of a dtype be an operation."""
    original: Any = torch.finfo
    owner = threading.get_ident()

    def finfo(dtype: torch.dtype | None = None) -> Any:
        known = original() if dtype is None else original(dtype)
        mine = recorder.frames and threading.get_ident() == owner
        frame = recorder.frames[-1] if mine else None
        if dtype is None or frame is None:
            return known
        return Limits(frame, dtype, known)

    torch.finfo = finfo  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        torch.finfo = original  # type: ignore[misc]
