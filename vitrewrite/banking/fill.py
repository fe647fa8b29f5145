"""Deltas as tensors of the modules of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ..errors import FileError
from ..folder.delta import check_shapes, differs, read_delta
from ..rewrite.rewritten import Rewritten
from ..storage.tensors import check_finite
from ..tracing.unit import duplicate
from .tree import heads, trained

Delta = str | Path | Mapping[str, torch.Tensor] | Rewritten
"""A file, a folder of PEFT, tensors by name, or a model that the same spec made."""


class Filler:
    """Turns deltas into the tensors of modules, by module path.

    It has a copy of what a delta holds, to load each into; the model itself stays as it is.
    """

    def __init__(self, rewritten: Rewritten) -> None:
        self.rewritten = rewritten
        self.heads = {name for names in heads(rewritten).values() for name in names}
        module = duplicate(rewritten.module, _own, lambda buffer: buffer.clone())
        self.scratch = replace(rewritten, module=module, original=None)

    def read(self, delta: Delta) -> dict[str, torch.Tensor]:
        """The tensors of a delta by name, which fit the model but for the number of classes.

        Raises:
            FileError: as `folder.delta.read_delta`.
        """
        if isinstance(delta, (str, Path)):
            return read_delta(self.rewritten, delta, heads=self.heads)
        tensors = delta.delta() if isinstance(delta, Rewritten) else dict(delta)
        own = self.rewritten.delta()
        resized = {k for k in self.heads & tensors.keys() if differs(tensors[k], own[k])}
        check_shapes(own, tensors, "that was given", resized)
        check_finite(tensors, "the delta")
        return tensors

    def classes(self, tensors: Mapping[str, torch.Tensor]) -> int | None:
        """How many classes the head of a delta makes; None if the head is no part of it.

        Raises:
            FileError: VR776 if its tensors do not agree.
        """
        counts = {len(tensors[name]) for name in self.heads}
        if len(counts) > 1:
            raise FileError("VR776", f"the heads of a delta make {sorted(counts)} classes")
        return counts.pop() if counts else None

    @torch.no_grad()
    def of_modules(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
        """What a delta that was read holds for each module."""
        for name, place in self.scratch.delta().items():
            if name not in self.heads:
                place.copy_(tensors[name])
        found = trained(self.scratch)
        for name in self.heads:
            path, _, last = name.rpartition(".")
            found[path][last] = tensors[name]
        return found


def _own(parameter: nn.Parameter) -> nn.Parameter:
    value = parameter.detach()
    return nn.Parameter(value.clone() if parameter.requires_grad else value, requires_grad=False)
