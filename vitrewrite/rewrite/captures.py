"""Captured models, for several specs."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..anatomy import analyse
from ..anatomy.sites import Anatomy
from ..editing.measure import Propagation
from ..models.request import Request
from ..tracing.about import about, tell
from .compilation import run


@dataclass(frozen=True)
class Capture:
    """A captured model on meta.

    Attributes:
        root: the tree; nothing changes it.
        run: what it computes.
        anatomy: its places.
        record: what it said of its images before any recipe.
    """

    root: nn.Module
    run: Propagation
    anatomy: Anatomy
    record: Any


class Captures:
    """Models on meta by what was asked for; none is captured twice."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Capture] = {}

    def of(self, request: Request) -> Capture:
        """The captured model of a request.

        Raises:
            VitrewriteError: what is wrong with the model, or its recipe.
        """
        key = request.key
        found = self._known.get(key) if key is not None else None
        if found is None:
            root = request.captured(meta=True)[1]
            found = Capture(
                root,
                run(root),
                analyse(root, tuple(request.spec.bases)),
                about(root).pretrained_cfg,
            )
        if key is not None:
            self._known[key] = found
        tell(found.root, pretrained_cfg=found.record)
        request.tell_recipe(found.root)
        return found
