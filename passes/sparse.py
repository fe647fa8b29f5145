"""Sparse deltas: single entries of weights, biases and norms, trained as a list.

What it does
    Trains chosen entries of a frozen layer: positions are fixed, values start at zero.

Source
    The unstructured part of SPT: He et al., "Sensitivity-Aware Visual Parameter-Efficient
    Fine-Tuning", ICCV 2023, section 3.

Attaches to
    Entries that `sensitive(...)` picks, of linear layers (rows q, k, v of a fused one are matrices
    of their own) and of layer norms.

Parameters
    weight [n] and bias [m], the values, zero, trained; their positions are stored beside them.

Forward
    y = (W + scatter(weight)) x + b + scatter(bias), as a product beside the frozen one. What
    autograd keeps is x and the values: the scattered matrix is made anew in the backward pass.

Exactness
    The model is unchanged at initialisation. Folds exactly: the values are added to their entries.

Example
    insert sparse() at sensitive(budget=0.4M)
    trains a few thousand single entries of ViT-B/16.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from vitrewrite.authoring import EntriesSite, Pass


class SparseDelta(nn.Module):
    """Adds what changed entries of a layer do to its output: y + D x + d, or norm(x) D + d.

    `shape` is that of the layer's weight, `parts` says how many entries of what each site has; with
    `eps` the layer is a norm over the last axis.
    """

    inserted_by = "sparse"
    changes = (1,)
    weight: nn.Parameter | None
    bias: nn.Parameter | None
    weight_index: torch.Tensor
    bias_index: torch.Tensor

    class Product(torch.autograd.Function):
        """x D^T for a matrix D that is zero but for some entries; D is not kept for backward."""

        @staticmethod
        def forward(
            x: torch.Tensor, values: torch.Tensor, index: torch.Tensor, rows: int
        ) -> torch.Tensor:
            """[.., rows] from x [.., columns]."""
            full = values.new_zeros(rows * x.shape[-1]).index_add(0, index, values)
            return x @ full.view(rows, x.shape[-1]).to(x.dtype).T

        @staticmethod
        def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
            """Keeps the inputs."""
            x, values, index, ctx.rows = inputs
            ctx.save_for_backward(x, values, index)

        @staticmethod
        def backward(ctx, grad):  # type: ignore[no-untyped-def]
            """Of x, and of the values."""
            x, values, index = ctx.saved_tensors
            full = values.new_zeros(ctx.rows * x.shape[-1]).index_add(0, index, values)
            dense = grad.flatten(0, -2).T @ x.flatten(0, -2)
            to_x = grad @ full.view(ctx.rows, x.shape[-1]).to(grad.dtype)
            return to_x, dense.flatten()[index].to(values.dtype), None, None

    def __init__(
        self,
        shape: tuple[int, ...],
        parts: tuple[tuple[str, int], ...],
        eps: float | None = None,
    ) -> None:
        super().__init__()
        self.shape, self.parts, self.eps = shape, parts, eps
        for name in ("weight", "bias"):
            count = sum(n for kind, n in parts if kind == name)
            self.register_parameter(name, nn.Parameter(torch.zeros(count)) if count else None)
            if count:
                self.register_buffer(f"{name}_index", torch.zeros(count, dtype=torch.long))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Zeros."""
        for values in self.parameters():
            nn.init.zeros_(values)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The output y of the layer, changed; x is its input."""
        if self.weight is not None and self.eps is None:
            y = y + self.Product.apply(x, self.weight, self.weight_index, self.shape[0])
        elif self.weight is not None and self.eps is not None:
            scale = y.new_zeros(self.shape).index_add(0, self.weight_index, self.weight.to(y.dtype))
            y = y + F.layer_norm(x, self.shape, eps=self.eps) * scale
        if self.bias is not None:
            shift = y.new_zeros(self.shape[:1])
            y = y + shift.index_add(0, self.bias_index, self.bias.to(y.dtype))
        return y


@dataclass(frozen=True)
class Sparse(Pass):
    """Single entries of layers."""

    verbs: ClassVar[tuple[str, ...]] = ("insert at",)
    attaches: ClassVar[tuple[str, ...]] = ("entries",)
    source: ClassVar[str] = "He et al., ICCV 2023"
    claims: ClassVar[tuple[str, ...]] = ("same_output_at_init", "lowers_exactly")

    def rewrite(self, site: EntriesSite) -> None:
        """y = layer(x) + what the changed entries do."""
        parts = tuple((p.kind, len(p.positions)) for p in site.parts)
        branch = SparseDelta(tuple(site.like.shape), parts, site.eps)
        for kind in {kind for kind, _ in parts}:
            positions = torch.cat([p.positions for p in site.parts if p.kind == kind])
            setattr(branch, f"{kind}_index", positions)
        site.parallel(branch)

    def lower(self, site: EntriesSite, branch: SparseDelta) -> bool:
        """W[index] += values."""
        return site.fold([t["values"] for t in self.delta(branch)])

    def delta(self, branch: SparseDelta) -> list[dict[str, torch.Tensor]]:
        """The values of each site, and where they go."""
        taken, found = {"weight": 0, "bias": 0}, []
        for kind, count in branch.parts:
            at = slice(taken[kind], taken[kind] + count)
            taken[kind] += count
            values, index = branch.get_parameter(kind)[at], branch.get_buffer(f"{kind}_index")[at]
            found.append({"values": values, "index": index})
        return found
