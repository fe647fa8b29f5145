"""The tensors that an allocation decides on: what stands between patch embedding and head.

Matrices are the weights of linear layers; rows q, k and v of a fused one are three matrices, and
three vectors of its bias. Vectors are what else has one axis: biases, norms, layer scales. So in a
hierarchical model the layers between stages belong to it: of Swin the reduction of a patch merging,
of ConvNeXt the norm and the bias of a downsampling. Neither are the kernels of convolutions
(depthwise ones too) and tables, such as relative positions: SPT, which this follows, has no rule
for more axes and freezes positions.

Of a segmentation model the layers of both decoders and the mask head are candidates too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from ..anatomy.sites import Anatomy, Linear
from . import decoders


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
        null: whether its gradient may be zero by construction: the bias of keys adds one number to
            all scores of a query, unless keys are normalised or rotated behind it.
        entries: whether single entries can be trained; else all of it or nothing.
        block: the index of the block it belongs to; of a layer of a decoder the role; or None.
        tensor: its name in the block, or the model without numbers: `attn.qkv.weight[q]`.
    """

    parameter: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None
    part: str = ""
    site: Linear | None = None
    layer: Linear | None = None
    null: bool = False
    entries: bool = True
    block: int | str | None = None
    tensor: str = ""

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
    inside = [*_trunk(anatomy), *([anatomy.norm] if anatomy.norm else [])]
    inside += decoders.paths(anatomy)
    outside = [s.weight.rpartition(".")[0] for s in anatomy.head]
    outside += [anatomy.patch_embed] if anatomy.patch_embed else []
    matrices = {s.weight: s for s in anatomy.linears}
    parts = _parts(anatomy)
    found: list[Candidate] = []
    for name, parameter in root.named_parameters():
        if not _below(name, inside) or _below(name, outside) or parameter.dim() not in (1, 2):
            continue
        weight = f"{name.removesuffix('bias')}weight" if name.endswith("bias") else name
        whole, split = matrices.get(weight), parts.get(weight, ())
        if parameter.dim() == 2 and whole is None:
            continue  # a table that no linear layer applies
        entries = weight.endswith(".weight") if whole else _is_layer_norm(root, name)
        found += _candidates(name, tuple(parameter.shape), whole, split, entries)
    return tuple(_placed(candidate, anatomy) for candidate in found)


def _placed(candidate: Candidate, anatomy: Anatomy) -> Candidate:
    """The candidate with the block that it belongs to."""
    for block in anatomy.blocks:
        if block.path and _below(candidate.name, [block.path]):
            name = candidate.name[len(block.path) + 1 :]
            return replace(candidate, block=block.index, tensor=name)
    if (found := decoders.placed(anatomy, candidate.name)) is not None:
        return replace(candidate, block=found[0], tensor=found[1])
    parts = [part for part in candidate.name.split(".") if not part.isdigit()]
    return replace(candidate, tensor=".".join(parts))


def _trunk(anatomy: Anatomy) -> list[str]:
    """The module that holds all blocks and what stands between them, else the blocks alone."""
    blocks = [b.path for b in anatomy.blocks]
    shared = list[str]()
    for parts in zip(*(path.split(".") for path in blocks), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return [".".join(shared)] if shared else blocks


def _below(name: str, paths: Sequence[str]) -> bool:
    return any(name.startswith(f"{path}.") for path in paths)


def _is_layer_norm(root: nn.Module, name: str) -> bool:
    """Whether a parameter is that of a plain layer norm, whose entries the pass can change."""
    return type(root.get_submodule(name.rpartition(".")[0])) is nn.LayerNorm


def _parts(anatomy: Anatomy) -> dict[str, list[Linear]]:
    """The rows q, k and v of fused layers by the weight's name."""
    found: dict[str, list[Linear]] = {}
    of_blocks = (block.attn for block in anatomy.blocks if block.attn is not None)
    for attn in (*of_blocks, *decoders.attentions(anatomy)):
        for site in (attn.q, attn.k, attn.v):
            if site is not None and (site.pieces or site.axis != -1):
                continue  # measured as a whole, if at all
            known = found.setdefault(site.weight, []) if site is not None else []
            # A block that runs twice has its rows once.
            if site is not None and all(site.rows != other.rows for other in known):
                known.append(site)
    return found


def _candidates(
    name: str, shape: tuple[int, ...], whole: Linear | None, split: Sequence[Linear], entries: bool
) -> Iterator[Candidate]:
    vector = len(shape) == 1
    if len(split) > 1:
        if vector and not entries:
            return  # a third of a bias is trained entry by entry
        for site in split:
            rows, part = site.rows, site.role.rpartition(".")[2]
            assert rows is not None, "several sites of one weight are rows of it"
            yield Candidate(
                name,
                (rows[1] - rows[0], *shape[1:]),
                rows,
                part,
                None if vector else site,
                site,
                vector and part == "k",
                entries,
            )
        return
    null = vector and len(split) == 1 and split[0].role.endswith(".k")
    yield Candidate(
        name, shape, site=None if vector else whole, layer=whole, null=null, entries=entries
    )
