"""The tensors that an allocation decides on: matrices and vectors of blocks and of the final norm.

The rows q, k and v of a fused layer are three matrices, and three vectors of its bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ..anatomy.sites import Anatomy, Linear


@dataclass(frozen=True)
class Candidate:
    """A matrix or vector.

    Attributes:
        parameter: the name of the parameter.
        shape: [rows, columns] or [length].
        rows: half-open range of the parameter's rows, or None for all of them.
        part: `q`, `k` or `v` for rows of a fused layer, else "".
        site: the linear layer, or rows of one, whose weight a matrix is.
        layer: the linear layer that it belongs to, for biases too.
        null: whether its gradient is zero by construction: the bias of keys, which adds one number
            to all scores of a query.
    """

    parameter: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None
    part: str = ""
    site: Linear | None = None
    layer: Linear | None = None
    null: bool = False

    @property
    def name(self) -> str:
        """`blocks.0.attn.qkv.weight[q]`."""
        return f"{self.parameter}[{self.part}]" if self.part else self.parameter

    @property
    def is_matrix(self) -> bool:
        """Whether it is a matrix."""
        return len(self.shape) == 2

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Its rows of a tensor that is like the parameter."""
        return tensor if self.rows is None else tensor[self.rows[0] : self.rows[1]]


def candidates(root: nn.Module, anatomy: Anatomy) -> tuple[Candidate, ...]:
    """All candidates, in the order of the model's parameters.

    Not among them: the head, the patch embedding, tokens and positions.
    """
    inside = [b.path for b in anatomy.blocks] + ([anatomy.norm] if anatomy.norm else [])
    matrices = {s.weight: s for b in anatomy.blocks for s in b.linears}
    parts = _parts(anatomy)
    found: list[Candidate] = []
    for name, parameter in root.named_parameters():
        if not any(name.startswith(f"{path}.") for path in inside):
            continue
        layer, _, kind = name.rpartition(".")
        whole, split = matrices.get(f"{layer}.weight"), parts.get(f"{layer}.weight", ())
        if kind == "weight" and parameter.dim() == 2 and whole is None:
            continue  # a table that no linear layer applies
        if kind not in ("weight", "bias") or parameter.dim() > 2:
            continue
        found += _candidates(name, tuple(parameter.shape), whole, split)
    return tuple(found)


def _parts(anatomy: Anatomy) -> dict[str, list[Linear]]:
    """The rows q, k and v of fused layers by the weight's name."""
    found: dict[str, list[Linear]] = {}
    for block in anatomy.blocks:
        attn = block.attn
        for site in () if attn is None else (attn.q, attn.k, attn.v):
            if site is not None:
                found.setdefault(site.weight, []).append(site)
    return found


def _candidates(
    name: str, shape: tuple[int, ...], whole: Linear | None, split: list[Linear] | tuple[()]
) -> Iterator[Candidate]:
    vector = len(shape) == 1
    if len(split) > 1:
        for site in split:
            rows, part = site.rows, site.role.rpartition(".")[2]
            assert rows is not None, "several sites of one weight are rows of it"
            yield Candidate(
                name, (rows[1] - rows[0], *shape[1:]), rows, part,
                None if vector else site, site, null=vector and part == "k",
            )  # fmt: skip
        return
    null = vector and len(split) == 1 and split[0].role.endswith(".k")
    yield Candidate(name, shape, site=None if vector else whole, layer=whole, null=null)
