"""What settings are multiplied by, parameter by parameter: decay by layer, factors for parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from ..errors import TuneError
from ..rewrite.factors import factors_of
from .run import Run


class Scale(NamedTuple):
    """Of the learning rate and of the weight decay."""

    lr: float = 1.0
    weight_decay: float = 1.0

    def __str__(self) -> str:
        decay = "" if self.weight_decay == 1 else f" (decay x {self.weight_decay:g})"
        return ("" if self.lr == 1 else f" x {self.lr:g}") + decay


def scales(run: Run) -> dict[str, Scale]:
    """The scales of the parameters of a phase that have any.

    Raises:
        TuneError: VR861 if the model does not say what its layers are, and they are asked for.
    """
    found = {name: Scale(lr) for name, lr in _by_layer(run).items()}
    for factor, names in factors_of(run.rewritten.result):
        for name in names:
            old = found.get(name, Scale())
            value = getattr(old, factor.name) * factor.number
            found[name] = old._replace(**{factor.name: value})
    return found


def _by_layer(run: Run) -> dict[str, float]:
    """As timm's `param_groups_layer_decay` has it: 1 for the head, less from layer to layer."""
    decay = run.settings.layer_decay
    if decay is None:
        return {}
    matcher = getattr(run.module, "group_matcher", None)
    if matcher is None:
        raise TuneError(
            "VR861",
            f"layer_decay = {decay:g} is for models that say what their layers are",
            notes=[f"{run.rewritten.model_name} has no 'group_matcher'"],
            suggestion="write factors in its place, such as 'lr(blocks[0:6]) = 0.1'",
        )
    from timm.models._manipulate import group_with_matcher

    timms: Any = group_with_matcher
    there = dict(_places(run))
    known = timms(((place, place) for place in there.values()), matcher(coarse=False), reverse=True)
    last = max(known.values())
    return {name: decay ** (last - known[place]) for name, place in there.items()}


def _places(run: Run) -> Iterator[tuple[str, str]]:
    """The parameters, and names that say where they are: what a pass put in is at its site."""
    put = {f"{i.path}.": f"{i.owners[0]}." for i in run.rewritten.result.editor.insertions}
    for name, _ in run.module.named_parameters():
        inside = next((path for path in put if name.startswith(path)), None)
        yield name, name if inside is None else put[inside] + name.removeprefix(inside)
