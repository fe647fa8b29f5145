"""How the gradients of stitches point: angles between those of each two, on what both train.

He et al., "Efficient Stitchable Task Adaptation", CVPR 2024, and the study of its figure 3.2: the
gradient of the loss of each stitch by the query, key and value weights of its blocks. Of two
stitches what both run is compared; where that is nothing there is no angle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from ..anatomy.sites import Anatomy
from ..data import Preprocessing, batches, open_data
from ..editing.fitting import modes_kept
from ..errors import ProfileError
from ..rewrite.rewritten import Rewritten
from ..rewrite.stitches import OneStitch
from .gradients import cross_entropy


@dataclass(frozen=True)
class Angles:
    """The angles between gradients, in degrees.

    Attributes:
        pairs: numbers of two stitches, and the angle of their gradients.
        images: that the loss is of.
        stitches: how many there are.
    """

    pairs: tuple[tuple[int, int, float], ...]
    images: int
    stitches: int

    @property
    def degrees(self) -> tuple[float, ...]:
        """All of them."""
        return tuple(angle for _, _, angle in self.pairs)

    @property
    def above(self) -> float:
        """The share above 90 degrees: of stitches that would undo each other's steps."""
        return sum(angle > 90 for angle in self.degrees) / max(len(self.pairs), 1)

    @property
    def mean(self) -> float:
        """The mean angle."""
        return sum(self.degrees) / max(len(self.pairs), 1)

    def shares(self, width: int) -> list[float]:
        """The share of the angles in each range of so many degrees, up to 180."""
        counts = [0] * (180 // width)
        for angle in self.degrees:
            counts[min(int(angle // width), len(counts) - 1)] += 1
        return [count / max(len(self.pairs), 1) for count in counts]


def angles_on(rewritten: Rewritten, data: str, *, batch: int, seed: int, device: str) -> Angles:
    """The angles on one batch of training images, drawn by a seed.

    Raises:
        ProfileError: VR542 for a spec that stitches no models, VR762 for a loss that is not finite.
        DataError: what is wrong with the data.
    """
    expect_stitches(rewritten)
    opened = open_data(data, Preprocessing.of(rewritten.base), measured=False)
    found = next(iter(batches(opened.train, batch, seed=seed, limit=batch)))
    rewritten.module.to(device)
    return angles_of(rewritten, *found.to(torch.device(device)))


def expect_stitches(rewritten: Rewritten) -> None:
    """Raises VR542 for what has no stitches."""
    if rewritten.measures.stitches is None:
        raise ProfileError(
            "VR542",
            f"'{rewritten.spec.name}' stitches no models: no two gradients can be at odds",
            suggestion="give a spec such as esta_angles, or a folder that 'tune' wrote of it",
        )


def angles_of(rewritten: Rewritten, images: torch.Tensor, labels: torch.Tensor) -> Angles:
    """The angles on images and their labels, of the model in eval mode.

    The weights need not be trained: what a frozen one would get counts.
    """
    expect_stitches(rewritten)
    space: Any = rewritten.measures.stitches
    root = rewritten.module
    parameters = dict(root.named_parameters())
    bases = rewritten.result.anatomy.bases
    names = [n for n in input_weights(bases) if n in parameters]
    found: list[dict[str, torch.Tensor]] = []
    with modes_kept(root):
        root.eval()
        for stitch in space.stitches:
            entry = OneStitch(root, stitch.number)
            found.append(_gradients(entry, parameters, names, images, labels))
    return Angles(tuple(_pairs(found)), len(images), len(found))


def input_weights(bases: Mapping[str, Anatomy]) -> list[str]:
    """The weights that make queries, keys and values of each block of several models.

    Of a block without attention they are all its matrices.
    """
    found: dict[str, None] = {}
    for block in (block for anatomy in bases.values() for block in anatomy.blocks):
        sites = block.linears
        if block.attn is not None:
            of = block.attn
            sites = tuple(s for s in (of.qkv, of.q, of.k, of.v) if s is not None)
        found |= {site.weight: None for site in sites}
    return list(found)


def _gradients(
    entry: OneStitch,
    parameters: Mapping[str, nn.Parameter],
    names: list[str],
    images: torch.Tensor,
    labels: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Of the loss of a stitch, by the weights that it runs."""
    copies = {n: parameters[n].detach().requires_grad_() for n in names}
    output = functional_call(entry, {f"model.{n}": p for n, p in copies.items()}, (images,))
    loss = cross_entropy(output, labels, 0)
    if not bool(loss.isfinite()):
        raise ProfileError("VR762", f"the loss of stitch {entry.number} is {loss.item()}")
    made = torch.autograd.grad(loss, list(copies.values()), allow_unused=True)
    return {n: g.flatten() for n, g in zip(names, made, strict=True) if g is not None}


def _pairs(found: list[dict[str, torch.Tensor]]) -> list[tuple[int, int, float]]:
    """The angle of each two, by what both have."""
    count = len(found)
    inner, own = torch.zeros(count, count).double(), torch.zeros(count, count).double()
    for name in dict.fromkeys(name for each in found for name in each):
        have = [i for i, each in enumerate(found) if name in each]
        rows = torch.stack([found[i][name] for i in have])
        products = (rows @ rows.T).double().cpu()
        place = torch.tensor(have)
        inner[place[:, None], place] += products
        own[place[:, None], place] += products.diagonal()[:, None].expand_as(products)
    result = []
    for i in range(count):
        for j in range(i + 1, count):
            size = math.sqrt(float(own[i, j] * own[j, i]))
            if size > 0:
                cosine = min(max(float(inner[i, j]) / size, -1.0), 1.0)
                result.append((i, j, math.degrees(math.acos(cosine))))
    return result
