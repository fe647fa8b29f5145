"""The tensors and settings of a PEFT adapter that does what a rewrite does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..catalog.updates import LowRankUpdate, Rescaling
from ..rewrite.rewritten import Rewritten
from .layers import AdaptedLayer, RowShare, layers_of, unsaid
from .saved import saved
from .settings import PREFIX, anchored, chosen

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class PeftAdapter:
    """What stands in the two files of a PEFT adapter.

    Attributes:
        settings: of `adapter_config.json`.
        tensors: of `adapter_model.safetensors`.
        layers: names of the layers that it adapts.
    """

    settings: dict[str, Any]
    tensors: Tensors
    layers: tuple[str, ...]


def said(rewritten: Rewritten) -> PeftAdapter:
    """The adapter of a rewritten model; its tensors are new ones, in the dtype of the delta's.

    Raises:
        FileError: VR770 for what PEFT cannot say.
    """
    if rewritten.lowered:
        raise unsaid("what was folded into weights", "the model is lowered")
    layers, delta = layers_of(rewritten), rewritten.delta()
    paths = tuple(layer.path for layer in layers)
    kinds = {type(share.update) for layer in layers for share in layer.shares}
    if not kinds:
        raise unsaid("a rewrite that adapts no layer")
    if len(kinds) > 1:
        raise unsaid("a rewrite that both adds to layers and multiplies them", "in one adapter")
    write = _low_rank if kinds == {LowRankUpdate} else _rescaling
    names = [name for name, _ in (rewritten.original or rewritten.base).named_modules()]
    settings, tensors = write(layers, delta, names)
    kept = saved(rewritten, paths, names)
    # Without a name of the base: peft would look for that on the hub whenever it saves.
    common = {
        "base_model_name_or_path": None, "inference_mode": True, "task_type": None,
        "modules_to_save": list(kept.modules) or None,
        "target_modules": chosen(paths, names),
    }  # fmt: skip
    named = {f"{PREFIX}{name}": tensor.clone() for name, tensor in (tensors | kept.tensors).items()}
    return PeftAdapter(dict(sorted((settings | common).items())), named, paths)


# -- low-rank updates -----------------------------------------------------------------------------


def _low_rank(
    layers: Sequence[AdaptedLayer], delta: Mapping[str, torch.Tensor], names: Sequence[str]
) -> tuple[dict[str, Any], Tensors]:
    tensors: Tensors = {}
    ranks, alphas, dropouts = {}, {}, set()
    for layer in layers:
        scale = scale_of(layer)
        down, up = stacked(layer, delta, scale)
        ranks[layer.path], alphas[layer.path] = len(down), _number(scale * len(down))
        dropouts |= {u.dropout for u in updates(layer)}
        if layer.pointwise:
            down, up = down[..., None, None], up[..., None, None]
        tensors |= {f"{layer.path}.lora_A.weight": down, f"{layer.path}.lora_B.weight": up}
    rank, alpha = _commonest(ranks), _commonest(alphas)
    settings = {
        "peft_type": "LORA", "r": rank, "lora_alpha": alpha, "bias": "none",
        "lora_dropout": dropouts.pop() if len(dropouts) == 1 else 0.0,
        "fan_in_fan_out": False, "use_rslora": False, "use_dora": False,
        "rank_pattern": {anchored(k, names): r for k, r in ranks.items() if r != rank},
        "alpha_pattern": {anchored(k, names): a for k, a in alphas.items() if a != alpha},
    }  # fmt: skip
    return settings, tensors


def updates(layer: AdaptedLayer) -> list[LowRankUpdate]:
    """The updates of a layer, all of them low-rank."""
    found = [share.update for share in layer.shares]
    return [update for update in found if isinstance(update, LowRankUpdate)]


def scale_of(layer: AdaptedLayer) -> float:
    """The one scale that PEFT has for a layer: that of its first part.

    Raises:
        FileError: VR770 if a part has none.
    """
    scales = [update.scale for update in updates(layer)]
    if 0 in scales:
        raise unsaid(f"an update of '{layer.path}' whose scale is 0")
    return scales[0]


def stacked(
    layer: AdaptedLayer, delta: Mapping[str, torch.Tensor], scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`down` [rank, width] and `up` [height, rank] that do to the whole layer what its parts do.

    The parts lie beside each other: each reads its own codes and writes its own rows, all else
    in `up` is zero. What is scaled otherwise than the first part has that in its rows of `up`.
    """
    downs = [delta[f"{s.name}.{u.down}"] for s, u in pairs(layer)]
    up = downs[0].new_zeros(layer.height, sum(map(len, downs)))
    for (share, update), place in zip(pairs(layer), places(downs), strict=True):
        own = delta[f"{share.name}.{update.up}"]
        own = own if update.scale == scale else own * (update.scale / scale)
        for rows, piece in zip(share.rows, torch.split(own, lengths(share)), strict=True):
            up[slice(*rows), place] = piece
    return torch.cat(downs), up


def pairs(layer: AdaptedLayer) -> list[tuple[RowShare, LowRankUpdate]]:
    """The parts of a layer with their updates."""
    return list(zip(layer.shares, updates(layer), strict=True))


def lengths(share: RowShare) -> list[int]:
    """How many rows each range of a part has."""
    return [stop - start for start, stop in share.rows]


def places(downs: Sequence[torch.Tensor]) -> list[slice]:
    """Where the codes of each part stand among those of the layer."""
    found, end = [], 0
    for down in downs:
        found.append(slice(end, end + len(down)))
        end += len(down)
    return found


def _commonest(numbers: Mapping[str, Any]) -> Any:
    return Counter(numbers.values()).most_common(1)[0][0]


def _number(value: float) -> int | float:
    return int(value) if value == int(value) else value


# -- factors --------------------------------------------------------------------------------------


def _rescaling(
    layers: Sequence[AdaptedLayer], delta: Mapping[str, torch.Tensor], names: Sequence[str]
) -> tuple[dict[str, Any], Tensors]:
    tensors: Tensors = {}
    inner = [layer.path for layer in layers if of_input(layer)]
    for layer in layers:
        if layer.pointwise:
            raise unsaid(f"a factor of the 1x1 convolution '{layer.path}'")
        tensors[f"{layer.path}.ia3_l"] = _factors(layer, delta)
    return {
        "peft_type": "IA3", "feedforward_modules": chosen(inner, names, dots=False),
        "fan_in_fan_out": False,
    }, tensors  # fmt: skip


def of_input(layer: AdaptedLayer) -> bool:
    """Whether the input of a layer is multiplied.

    Raises:
        FileError: VR770 if both its input and its output are.
    """
    sides = {s.update.of_input for s in layer.shares if isinstance(s.update, Rescaling)}
    if len(sides) > 1:
        raise unsaid(f"factors of both the input and the output of '{layer.path}'")
    return sides.pop()


def _factors(layer: AdaptedLayer, delta: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """[1, width] of the input, or [height, 1] of the output, one where nothing is multiplied."""
    made = [delta[f"{s.name}.{s.update.factor}"] for s in layer.shares]  # type: ignore[union-attr]
    if of_input(layer):
        if len(made) > 1:
            raise unsaid(f"two factors of the input of '{layer.path}'")
        return made[0][None]
    whole = made[0].new_ones(layer.height)
    for share, factors in zip(layer.shares, made, strict=True):
        for rows, piece in zip(share.rows, torch.split(factors, lengths(share)), strict=True):
            whole[slice(*rows)] = piece
    return whole[:, None]
