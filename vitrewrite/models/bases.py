"""Several models in one: what a spec that stitches them is about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..errors import MatchError
from ..text import listing
from ..tracing import inputs


class Bases(nn.Module):
    """Models that take the same images, as children by name; yields what each of them does."""

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, model in models.items():
            self.add_module(name, model)
        largest: Any = list(models.values())[-1]
        self.pretrained_cfg = getattr(largest, "pretrained_cfg", None)
        self.config = getattr(largest, "config", None)

    def forward(self, x: torch.Tensor) -> tuple[Any, ...]:
        """The results of all models, in order."""
        return tuple(model(x) for model in self._modules.values())  # type: ignore[misc]


def example_of(bases: nn.Module, text: str | None) -> Any:
    """What the models are called with; all with the same, as `input=` states it or they say.

    Raises:
        CaptureError: if one does not say.
        MatchError: VR508 if they say different things.
    """
    if text is not None:
        return inputs.stated_input(bases, text)
    found = {name: inputs.example_input(model) for name, model in bases.named_children()}
    sizes = {name: inputs.statement(bases, example) for name, example in found.items()}
    if len(set(sizes.values())) > 1:
        said = listing(f"{name} {size}" for name, size in sizes.items())
        raise MatchError(
            "VR508",
            f"the bases take different images: {said}",
            suggestion="give them one size, such as img_size=224 in each, or input=1x3x224x224",
        )
    return next(iter(found.values()))


def per_base(text: str, names: Mapping[str, Any]) -> dict[str, str]:
    """What `weights=` says of each base: one word for all, or `small=FILE,base=pretrained`.

    Raises:
        MatchError: VR508 for a name that is none, or one that is left out.
    """
    parts = [part.partition("=") for part in text.split(",")]
    if len(parts) == 1 and parts[0][0] not in names:
        return dict.fromkeys(names, text)
    found = {name.strip(): value.strip() for name, _, value in parts}
    if set(found) != set(names) or not all(found.values()):
        wanted = ",".join(f"{name}=FILE" for name in names)
        raise MatchError(
            "VR508",
            f"weights={text} does not say where those of {listing(names)} come from",
            suggestion=f"write weights=pretrained for all, or weights={wanted}",
        )
    return found
