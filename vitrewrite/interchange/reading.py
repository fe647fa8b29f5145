"""A PEFT adapter as the delta of a rewrite."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..catalog.updates import LowRankUpdate, Rescaling
from ..errors import FileError
from ..rewrite.rewritten import Rewritten
from ..rewrite.unlowering import same_bits
from ..text import listing
from .adapters import Tensors, of_input, pairs, places
from .layers import AdaptedLayer, layers_of
from .settings import PREFIX, value_for

_KINDS: dict[str, type[LowRankUpdate] | type[Rescaling]] = {"LORA": LowRankUpdate, "IA3": Rescaling}
_OTHERWISE = ("use_dora", "use_qalora", "fan_in_fan_out", "lora_bias", "velora_config")
"""Settings with which a layer computes something else."""


def read(
    rewritten: Rewritten, settings: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> Tensors:
    """The delta that does to the model of `rewritten` what an adapter does.

    Args:
        rewritten: made by a spec that adapts the layers that the adapter does.
        settings: of `adapter_config.json`.
        tensors: of the adapter.

    Raises:
        FileError: VR770 if the spec puts in what PEFT has no words for, VR771 for an adapter of
            another kind, VR772 for one that does not fit.
    """
    layers = layers_of(rewritten)
    kind = settings.get("peft_type")
    wanted = {type(share.update) for layer in layers for share in layer.shares}
    if kind not in _KINDS or wanted != {_KINDS[kind]}:
        others = sorted(name for name, made in _KINDS.items() if made in wanted)
        raise FileError(
            "VR771",
            f"an adapter of the kind {kind!r} is none that the spec makes",
            notes=[f"its own would be {' and '.join(others) or 'none'}"],
        )
    odd = [name for name in _OTHERWISE if settings.get(name)]
    if odd:
        raise FileError("VR771", f"an adapter with {listing(odd)} does something else than {kind}")
    bare = {k.removeprefix(PREFIX): v for k, v in tensors.items()}
    reader = _AdapterReader(rewritten, settings, bare)
    read_layer = reader.low_rank if kind == "LORA" else reader.rescaling
    for layer in layers:
        read_layer(layer)
    reader.rest()
    return reader.delta


@dataclass
class _AdapterReader:
    """Takes the tensors of an adapter, layer by layer.

    Attributes:
        left: those that were not taken yet.
        delta: what they are in the delta.
    """

    rewritten: Rewritten
    settings: Mapping[str, Any]
    left: Tensors
    delta: Tensors = field(default_factory=dict)

    def take(self, name: str, shape: tuple[int | None, ...]) -> torch.Tensor:
        """A tensor of the adapter; None in the shape is any length."""
        found = self.left.pop(name, None)
        if found is None:
            raise _unfit(f"it has no tensor '{name}'")
        fits = len(found.shape) == len(shape)
        if not fits or any(n not in (m, None) for m, n in zip(found.shape, shape, strict=True)):
            wanted = "x".join("?" if n is None else str(n) for n in shape)
            raise _unfit(f"'{name}' is {'x'.join(map(str, found.shape))}, not {wanted}")
        return found

    # -- low-rank updates -------------------------------------------------------------------------

    def low_rank(self, layer: AdaptedLayer) -> None:
        """`down` and `up` of each part of a layer."""
        ones = (1, 1) if layer.pointwise else ()
        down = self.take(f"{layer.path}.lora_A.weight", (None, layer.width, *ones))
        up = self.take(f"{layer.path}.lora_B.weight", (layer.height, len(down), *ones))
        down, up, own = down.flatten(1), up.flatten(1), self.rewritten.delta()
        at = places([own[f"{share.name}.{update.down}"] for share, update in pairs(layer)])
        if at[-1].stop != len(down):
            raise _unfit(
                f"its rank at '{layer.path}' is {len(down)}, that of the spec {at[-1].stop}"
            )
        scale, rest = self.scale(layer, len(down)), up.clone()
        for (share, update), place in zip(pairs(layer), at, strict=True):
            rows = [slice(*r) for r in share.rows]
            self.delta[f"{share.name}.{update.down}"] = down[place]
            found = torch.cat([up[r, place] for r in rows])
            alike = math.isclose(scale, update.scale, rel_tol=1e-9)
            self.delta[f"{share.name}.{update.up}"] = (
                found if alike else found * self.ratio(layer, scale, update)
            )
            for r in rows:
                rest[r, place] = 0
        if bool(rest.any()):
            raise _unfit(
                f"at '{layer.path}' it changes rows that the spec leaves alone, or mixes parts",
                f"the spec adapts {', '.join(s.role for s in layer.shares)} apart",
            )

    def ratio(self, layer: AdaptedLayer, scale: float, update: LowRankUpdate) -> float:
        """What makes up for another scale."""
        if update.scale == 0:
            raise _unfit(f"the scale of the spec at '{layer.path}' is 0")
        return scale / update.scale

    def scale(self, layer: AdaptedLayer, rank: int) -> float:
        """The scale of a layer by the settings."""
        known = self.settings
        alphas = known.get("alpha_pattern") or {}
        alpha = value_for(alphas, layer.path, known.get("lora_alpha", 8))
        stated = value_for(known.get("rank_pattern") or {}, layer.path, known.get("r", 8))
        if not isinstance(alpha, (int, float)) or stated != rank:
            raise _unfit(f"at '{layer.path}' its settings say rank {stated} and alpha {alpha}")
        return float(alpha / (math.sqrt(rank) if known.get("use_rslora") else rank))

    # -- factors ----------------------------------------------------------------------------------

    def rescaling(self, layer: AdaptedLayer) -> None:
        """The factors of each part of a layer."""
        shape = (1, layer.width) if of_input(layer) else (layer.height, 1)
        found = self.take(f"{layer.path}.ia3_l", shape).flatten()
        rest = found.clone()
        for share in layer.shares:
            assert isinstance(share.update, Rescaling)
            rows = [slice(None)] if share.update.of_input else [slice(*r) for r in share.rows]
            name = f"{share.name}.{share.update.factor}"
            self.delta[name] = torch.cat([found[r] for r in rows])
            for r in rows:
                rest[r] = 1
        if bool((rest != 1).any()):
            raise _unfit(
                f"at '{layer.path}' it changes rows that the spec leaves alone",
                f"the spec adapts {', '.join(s.role for s in layer.shares)}",
            )

    # -- the model's own --------------------------------------------------------------------------

    def rest(self) -> None:
        """Trained parameters; all else has to be as it is in the model."""
        state = self.rewritten.module.state_dict()
        for name in sorted(self.rewritten.result.base_trained):
            self.delta[name] = self.take(name, tuple(state[name].shape))
        odd = list(self._changed(state))
        if odd:
            raise _unfit(f"it has {listing(odd, 3)} besides, which the spec does not train")

    def _changed(self, state: Mapping[str, torch.Tensor]) -> Iterator[str]:
        for name, tensor in self.left.items():
            if name not in state or not same_bits(state[name], tensor.to(state[name].dtype)):
                yield name


def _unfit(message: str, *notes: str) -> FileError:
    return FileError("VR772", f"the adapter does not fit: {message}", notes=notes)
