"""Captured models, for several specs."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..editing.measure import Propagation
from ..models.request import Request
from .compilation import run


class Captures:
    """Models on meta by what was asked for, each with a run of it; none is captured twice."""

    def __init__(self) -> None:
        self._known: dict[Any, tuple[nn.Module, Propagation]] = {}

    def of(self, request: Request) -> tuple[nn.Module, Propagation]:
        """The captured model of a request, and a run of it on meta.

        Raises:
            VitrewriteError: what is wrong with the model.
        """
        key = request.key
        if key is None or key not in self._known:
            base = request.traced(meta=True)[1]
            found = base, run(base)
            if key is None:
                return found
            self._known[key] = found
        return self._known[key]
