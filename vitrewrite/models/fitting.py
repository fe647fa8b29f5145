"""Checkpoints fitted to a model: names, head, grid, channels and dtype; what was done is told."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..errors import FileError
from ..text import first_line, listing
from .checkpoint import Checkpoint
from .names import renamed, taken_from_timm

_HEADS = ("head", "classifier", "fc", "head_dist", "cls_classifier", "distillation_classifier")
_MOST, _HALF = 0.7, 0.5  # of the names of a model: it is meant, it may be meant
Tensors = dict[str, torch.Tensor]


class Fitting:
    """A checkpoint on its way into a model.

    Attributes:
        state: the tensors as far as they have come, by the model's names.
        told: what was adapted, a line each.
        fresh: names of the model that keep their initial values.
    """

    def __init__(self, model: nn.Module, checkpoint: Checkpoint) -> None:
        self.model, self.source = model, checkpoint.source
        self.own: Tensors = dict(model.state_dict())
        self.state, self.told = dict(checkpoint.tensors), list(checkpoint.told)
        self.given = checkpoint.tensors
        self.fresh: set[str] = set()

    def fit(self) -> Fitting:
        """Does all of it.

        Raises:
            FileError: VR712 if the weights are of another model.
        """
        if self._share(self.state) < _MOST:
            self._named()
        self._filtered()
        self._channels()
        self._head()
        self._extra()
        self._shapes()
        self._dtypes()
        return self

    def _share(self, state: Tensors) -> float:
        return len(self.own.keys() & state.keys()) / max(1, len(self.own))

    def _tell(self, line: str) -> None:
        self.told.append(f"weights '{self.source}': {line}")

    # -- names ----------------------------------------------------------------------------------

    def _named(self) -> None:
        """Finds the model's names: behind a prefix, as of the other library, or few of them."""
        state, line = self._prefixed()
        ways = (
            ("names of Hugging Face taken for timm's", renamed),
            ("names of timm taken for Hugging Face's", taken_from_timm),
        )
        for told, way in ways if self._share(state) < _MOST else ():
            found, left = way(_unwrapped(self.state), self.own)
            if self._share(found) > max(_HALF, self._share(state)):
                self._tell(told)
                self._tell_unused(left)
                self._leave_masks(found)
                self.state = {k: _as_large(v, self.own[k]) for k, v in found.items()}
                return
        if line:
            self._tell(line)
        self.state = state

    def _prefixed(self) -> tuple[Tensors, str]:
        """Without, or with, what a wrapper or a task put in front of all names; and that in words.

        The names as they are, if that finds no more of them.
        """
        offered = Counter(_prefixes(self.state, self.own))
        lacking = Counter(_prefixes(self.own, self.state))
        plain = len(self.own.keys() & self.state.keys())
        prefix, count = max(offered.items(), key=lambda item: item[1], default=("", 0))
        if count > plain:
            return _below(self.state, prefix), f"names without '{prefix}'"
        prefix, count = max(lacking.items(), key=lambda item: item[1], default=("", 0))
        if count > plain:
            own = _below(self.own, prefix)
            state = {f"{prefix}{k}" if k in own else k: v for k, v in self.state.items()}
            return state, f"names with '{prefix}' in front"
        return self.state, ""

    def _leave_masks(self, found: Tensors) -> None:
        """What stands for hidden patches in pretraining is no part of a model of timm."""
        masks = {k for k in self.own if k.endswith("mask_token") and k not in found}
        if masks:
            self._tell(f"newly initialised, and read in pretraining only: {listing(sorted(masks))}")
        self.fresh |= masks

    def _filtered(self) -> None:
        """Has timm adapt what its own model takes: the grid of positions, names of old files."""
        function = _filter_of(self.model)
        if function is None:
            return
        before = {k: tuple(v.shape) for k, v in self.state.items()}
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                self.state = dict(function(dict(self.state), self.model))
        except Exception as error:  # whatever a checkpoint of another model makes it say
            raise self._other(f"timm cannot adapt them: {first_line(error)}") from error
        changed = [
            f"{k} from {_shape(before[k])} to {_shape(v.shape)}"
            for k, v in self.state.items()
            if k in before and tuple(v.shape) != before[k]
        ]
        if changed:
            self._tell(f"resampled by timm: {listing(changed, 3)}")

    # -- what differs -----------------------------------------------------------------------------

    def _channels(self) -> None:
        """Has timm sum or repeat the channels of the first convolution."""
        import timm.models

        names = _records(self.model).get("first_conv") or ()
        for name in (names,) if isinstance(names, str) else tuple(names):
            key = f"{name}.weight"
            given, own = self.state.get(key), self.own.get(key)
            if given is None or own is None or given.dim() != 4 or given.shape[1] == own.shape[1]:
                continue
            theirs, count = given.shape[1], own.shape[1]
            try:
                self.state[key] = timm.models.adapt_input_conv(count, given)
            except NotImplementedError as error:
                raise self._other(f"{key} takes {theirs} channels, not {count}") from error
            self._tell(f"{key} takes {count} channels instead of {theirs}, adapted by timm")

    def _head(self) -> None:
        """Leaves a head of other classes, or none, to its initial values."""
        for head in _heads(self.model):
            names = [k for k in self.own if k.startswith(f"{head}.")]
            given = [k for k in names if k in self.state]
            if not names or all(k in self.state and self._fits(k) for k in names):
                continue
            if given == [f"{head}.weight"] and self._fits(given[0]):
                self.state[f"{head}.bias"] = torch.zeros_like(self.own[f"{head}.bias"])
                self._tell(f"'{head}' has no bias in the checkpoint: it is zero")
                continue
            first = given[0] if given else ""
            theirs = f"has {len(self.state[first])} classes" if given else "has none"
            self._tell(f"'{head}' is newly initialised: the checkpoint {theirs}")
            self.fresh |= set(names)
            self.state = {k: v for k, v in self.state.items() if k not in names}
        self._norm_of_means()

    def _norm_of_means(self) -> None:
        """Leaves the norm behind a mean of all tokens to its initial values, as MAE's code does.

        What was trained in front of a class token is of no use there.
        """
        names = {k for k in self.own if k.startswith("fc_norm.")}
        if names and names.isdisjoint(self.state) and "norm.weight" in self.state.keys() - self.own:
            self._tell("'fc_norm' is newly initialised: the checkpoint has a norm of single tokens")
            self.fresh |= names

    def _fits(self, name: str) -> bool:
        return self.state[name].shape == self.own[name].shape

    def _extra(self) -> None:
        self._tell_unused(self.state.keys() - self.own.keys())
        self.state = {k: v for k, v in self.state.items() if k in self.own}

    def _tell_unused(self, names: Any) -> None:
        if names:
            self._tell(f"not used: {listing(sorted(names), 4)}")

    def _shapes(self) -> None:
        missing = sorted(self.own.keys() - self.state.keys() - self.fresh)
        odd = sorted(k for k in self.state if not self._fits(k))
        if missing or odd:
            shapes = [
                f"{k} {_shape(self.state[k].shape)}, not {_shape(self.own[k].shape)}" for k in odd
            ]
            found = (("missing", missing), ("other shape", shapes))
            notes = [f"{what}: {listing(names, 3)}" for what, names in found if names]
            raise self._other(*notes)

    def _dtypes(self) -> None:
        kinds = {(v.dtype, self.own[k].dtype) for k, v in self.state.items()}
        for theirs, own in sorted((p for p in kinds if p[0] != p[1]), key=str):
            self._tell(f"{_kind(theirs)} read as {_kind(own)}")
        self.state = {k: v.to(self.own[k].dtype) for k, v in self.state.items()}

    def _other(self, *notes: str) -> FileError:
        from .likeness import looks_like

        told = looks_like(self.given)
        return FileError(
            "VR712",
            f"the weights in '{self.source}' do not fit the model",
            notes=list(notes),
            suggestion=f"they look like {told}" if told else None,
        )


def _prefixes(names: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """For each name that is a wanted one behind a prefix, that prefix."""
    found = []
    for name in names:
        parts = name.split(".")
        for at in range(1, min(len(parts), 5)):
            if ".".join(parts[at:]) in wanted:
                found.append(".".join(parts[:at]) + ".")
    return found


def _below(tensors: Mapping[str, torch.Tensor], prefix: str) -> Tensors:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _as_large(tensor: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """With as many leading axes of length one as the model's own has."""
    while tensor.dim() > own.dim() and tensor.shape[0] == 1:
        tensor = tensor[0]
    return tensor.reshape(*(1,) * (own.dim() - tensor.dim()), *tensor.shape)


def _unwrapped(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Without what data parallelism and compiling put in front."""
    from timm.models import clean_state_dict

    return dict(clean_state_dict(dict(tensors)))


def _filter_of(model: nn.Module) -> Callable[..., Mapping[str, torch.Tensor]] | None:
    """What timm's own loading runs over a checkpoint of such a model."""
    module = sys.modules[type(model).__module__]
    if not module.__name__.startswith("timm."):
        return None
    found: Callable[..., Mapping[str, torch.Tensor]] | None
    found = getattr(module, "checkpoint_filter_fn", None)
    return found


def _records(model: nn.Module) -> Mapping[str, Any]:
    return getattr(model, "pretrained_cfg", None) or {}


def _heads(model: nn.Module) -> list[str]:
    """The layers that tell classes: as timm's record has them, or by the name that they have."""
    known = _records(model).get("classifier")
    names = (known,) if isinstance(known, str) else tuple(known or _HEADS)
    modules = dict(model.named_modules())
    return [name for name in names if isinstance(modules.get(name), nn.Linear)]


def _shape(shape: Any) -> str:
    return "x".join(map(str, shape)) or "one number"


def _kind(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
