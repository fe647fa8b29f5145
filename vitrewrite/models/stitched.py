"""Which models are meant by a spec that stitches several."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from .. import models
from ..errors import MatchError
from ..language.model import Spec
from ..text import listing
from ..tracing import trace
from ..tracing.about import about, tell
from .bases import Bases, example_of, per_base
from .request import Request

Given = nn.Module | Mapping[str, nn.Module] | str | None
"""A model, or what a spec stitches by the names of its bases; None for the spec's own."""


def requested(
    spec: Spec, model: Given, weights: str, seed: int, options: Mapping[str, Any] | None = None
) -> Request:
    """The request for the model of a spec, or for those that it stitches.

    Raises:
        MatchError: VR507 for models that are given by other names than those of the spec.
    """
    if spec.bases:
        return StitchedRequest(spec, model, weights, seed)
    if isinstance(model, Mapping):
        raise MatchError(
            "VR507",
            f"{len(model)} models are given by name, and the spec stitches none",
            suggestion="give one model",
        )
    return Request(spec, model, weights, seed, options)


class StitchedRequest(Request):
    """Several models, each by its own request, under the names that the spec gives them.

    Attributes:
        parts: the request of each base.
    """

    def __init__(self, spec: Spec, model: Given, weights: str, seed: int) -> None:
        self.spec, self.input = spec, spec.input
        self.weights, self.seed, self.told = weights, seed, []
        self.ref, self._recipe = None, {}
        self.module = None if model is None or isinstance(model, str) else _given(spec, model)
        self.name = ", ".join(f"{name}={ref.name}" for name, ref in spec.bases.items())
        sources = per_base(weights, spec.bases)
        self.parts = {
            name: Request(replace(spec, clauses=(), model=ref), None, sources[name], seed)
            for name, ref in spec.bases.items()
        }
        if self.module is not None:
            self.weights = "given"
        self.options = {name: part.options for name, part in self.parts.items()}

    def captured(self, example: Any = None, *, meta: bool) -> tuple[nn.Module, nn.Module]:
        """All models in one, and its captured tree: what they share of their programs is once.

        Raises:
            VitrewriteError: what is wrong with one of them, at the line that names it.
        """
        model = self.build(meta=meta)
        root = trace(model, example_of(model, self.input) if example is None else example)
        tell(root, notes=(*about(root).notes, *self.told))
        return model, root

    def build(self, *, meta: bool) -> nn.Module:
        """The models as children of one."""
        if self.module is not None:
            return self.module
        made: dict[str, nn.Module] = {}
        self.told.clear()
        for name, part in self.parts.items():
            with models.asked_by(part.ref):
                made[name] = part.build(meta=meta)
            self.told += [f"{name}: {line}" for line in part.told]
        return Bases(made)

    @property
    def key(self) -> Hashable:
        """What the captured models depend on; None if that is more than what is asked for."""
        keys = tuple((name, part.key) for name, part in self.parts.items())
        known = self.module is None and all(key is not None for _, key in keys)
        return (keys, self.input) if known else None


def _given(spec: Spec, model: nn.Module | Mapping[str, nn.Module]) -> nn.Module:
    """The models of somebody by the names of the bases.

    Raises:
        MatchError: VR507 if they have others.
    """
    if isinstance(model, nn.ModuleDict):
        model = dict(model.items())
    if isinstance(model, nn.Module):
        found = tuple(name for name, _ in model.named_children())
    else:
        found, model = tuple(model), Bases(model)
    if found != tuple(spec.bases):
        raise MatchError(
            "VR507",
            f"the models that are given are {listing(found) or 'one without parts'}, and "
            f"the spec stitches {listing(spec.bases)}",
            suggestion=f"give a dict with the keys {listing(spec.bases)}, in this order",
        )
    return model
