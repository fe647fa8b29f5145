"""What a run computes, by kind: what conventions of counting weigh."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

aten = torch.ops.aten


@dataclass(frozen=True)
class Costs:
    """Counts of a run.

    Attributes:
        convolved: multiply-accumulates of convolutions.
        linear: of products with one matrix: linear layers.
        products: of all other matrix products: scores, and their products with values.
        normalised: elements of layer and group norms; batch_normalised of batch norms.
        sampled: elements that sampling between positions yields.
        resized: elements that bilinear resizing yields.
        mapped: multiply-accumulates of a map of classes that is made of what a model yields.
        prefixed: of those of `linear`, what MLPs compute for tokens that are no patches.
        normalised_in_blocks: of `normalised`, the norms of blocks.
    """

    convolved: int = 0
    linear: int = 0
    products: int = 0
    normalised: int = 0
    batch_normalised: int = 0
    sampled: int = 0
    resized: int = 0
    mapped: int = 0
    prefixed: int = 0
    normalised_in_blocks: int = 0

    @property
    def macs(self) -> int:
        """Multiply-accumulates of every convolution and matrix product."""
        return self.convolved + self.linear + self.products

    def __add__(self, other: Costs) -> Costs:
        return Costs(*map(operator.add, self.counts, other.counts))

    def __sub__(self, other: Costs) -> Costs:
        return Costs(*map(operator.sub, self.counts, other.counts))

    @property
    def counts(self) -> tuple[int, ...]:
        """All counts, in the order of the class."""
        return (
            self.convolved, self.linear, self.products, self.normalised,
            self.batch_normalised, self.sampled, self.resized, self.mapped, self.prefixed,
            self.normalised_in_blocks,
        )  # fmt: skip

    def weighed(self, weights: Mapping[str, float]) -> float:
        """Their sum, each times the weight of its kind."""
        return sum(weight * int(getattr(self, kind)) for kind, weight in weights.items())


def _elements(*_: Any, out_val: Any, **__: Any) -> int:
    first = out_val[0] if isinstance(out_val, (tuple, list)) else out_val
    return int(first.numel())


def _in_place(c: Any, a: Any, b: Any, *_: Any, **__: Any) -> int:
    return int(2 * a.shape[0] * a.shape[1] * b.shape[1])


def _raw(count: Callable[..., int]) -> Callable[..., int]:
    count._get_raw = True  # type: ignore[attr-defined]  # given tensors, not their shapes
    return count


_NORMS = (aten.native_layer_norm, aten.native_group_norm)
_BATCH_NORMS = (
    aten.native_batch_norm, aten._native_batch_norm_legit, aten._batch_norm_with_update,
    aten._native_batch_norm_legit_no_training, aten._batch_norm_no_update,
)  # fmt: skip
_KINDS: Mapping[Any, str] = {
    **dict.fromkeys((aten.convolution, aten._convolution), "convolved"),
    **dict.fromkeys((aten.mm, aten.addmm, aten.addmm_), "linear"),
    **dict.fromkeys(_NORMS, "normalised"),
    **dict.fromkeys(_BATCH_NORMS, "batch_normalised"),
    aten.grid_sampler_2d: "sampled",
    aten.upsample_bilinear2d: "resized",
}
_OPERATIONS = ("convolved", "linear", "products")  # of which torch counts two for one

# Torch's counter knows `addmm`, and not that it can be done in place; no norm and no sampling.
MORE: Mapping[Any, Callable[..., int]] = {
    aten.addmm_: _raw(_in_place),
    **{op: _raw(_elements) for op, kind in _KINDS.items() if kind not in _OPERATIONS},
}


def counted(flops: Mapping[Any, int]) -> Costs:
    """What torch's counter counted, by operator."""
    found: dict[str, int] = {}
    for called, count in flops.items():
        kind = _KINDS.get(called, "products")
        found[kind] = found.get(kind, 0) + (count // 2 if kind in _OPERATIONS else count)
    return Costs(**found)


def of_layer(layer: nn.Module, x: torch.Tensor) -> Costs:
    """What a layer computes that is known without running it."""
    if isinstance(layer, nn.Linear):
        return Costs(linear=x.numel() * layer.out_features)
    if isinstance(layer, (nn.LayerNorm, nn.GroupNorm)):
        return Costs(normalised=x.numel())
    if isinstance(layer, nn.BatchNorm2d):
        return Costs(batch_normalised=x.numel())
    return Costs()
