"""(IA)3: trained factors of keys, of values, and of what the last layer of an MLP reads.

What it does
    Multiplies every channel that a frozen layer yields, or of the last layer of a feed-forward part
    every channel that it reads, by a number of its own.

Source
    Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context
    Learning", NeurIPS 2022, section 3.3.

Attaches to
    Any linear layer (`q`, `k`, `v` are rows of a fused `qkv`). The paper's places: `k` and `v` of
    every attention, and the hidden units of every feed-forward part behind the activation, which
    are the input of its `fc2`. `side` says which it is elsewhere.

Parameters
    factor [c], one, of the c channels; trained.

Forward
    y = factor * (W x + b), behind the layer's own bias and before the split into heads; of `fc2`
    y = W (factor * x) + b. In training too.

Exactness
    The model is unchanged at initialisation. Folds exactly: W = diag(factor) W, b = factor * b; of
    `fc2` W = W diag(factor). Not where a layer is shared, or something else reads what it reads.

Example
    insert ia3() at blocks[*].attn.{k, v} + blocks[*].mlp.fc2
    adds 55,296 parameters to ViT-B/16; folded, they cost nothing.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from vitrewrite.authoring import LinearSite, Pass, Rescaling, option


class OutputFactor(nn.Module):
    """factor * y on channels of y, which lie on `axis`; the others pass as they are.

    `ranges` has the half-open ranges of channels of each part.
    """

    inserted_by = "ia3"
    changes = (0,)

    def __init__(self, ranges: tuple[tuple[tuple[int, int], ...], ...], axis: int = -1) -> None:
        super().__init__()
        self.ranges, self.axis = ranges, axis
        self.rows = tuple(piece for part in ranges for piece in part)
        self.factor = nn.Parameter(torch.ones(sum(b - a for a, b in self.rows)))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Ones."""
        nn.init.ones_(self.factor)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        """y [..., channels] or [batch, channels, ...], in the same shape."""
        made, end = [], 0
        pieces = torch.split(self.factor, [b - a for a, b in self.rows])
        for (start, stop), piece in zip(self.rows, pieces, strict=True):
            made += [piece.new_ones(start - end)] * (start > end) + [piece]
            end = stop
        width = y.shape[self.axis]
        whole = torch.cat([*made, self.factor.new_ones(width - end)])
        shape = [1] * y.dim()
        shape[self.axis] = width
        return y * whole.view(shape)


class InputFactor(nn.Module):
    """factor * x in front of a layer, on channels that lie on `axis`."""

    inserted_by = "ia3"
    changes = (0,)
    ahead = True

    def __init__(self, width: int, axis: int = -1) -> None:
        super().__init__()
        self.width, self.axis = width, axis
        self.factor = nn.Parameter(torch.ones(width))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Ones."""
        nn.init.ones_(self.factor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., width] or [batch, width, ...], in the same shape."""
        if self.axis == -1:
            return x * self.factor
        shape = [1] * x.dim()
        shape[self.axis] = self.width
        return x * self.factor.view(shape)


@dataclass(frozen=True)
class Ia3(Pass):
    """Factors of channels."""

    verbs: ClassVar[tuple[str, ...]] = ("insert at",)
    attaches: ClassVar[tuple[str, ...]] = ("linear",)
    source: ClassVar[str] = "Liu et al., NeurIPS 2022"
    claims: ClassVar[tuple[str, ...]] = ("same_output_at_init", "lowers_exactly")

    side: str = option(
        "paper",
        choices=("paper", "input", "output"),
        help="what is multiplied; in the paper the input of an MLP's last layer, else the output",
    )

    def rewrite(self, linear: LinearSite) -> None:
        """y = factor * (W x + b), or y = W (factor * x) + b."""
        if self.of_input(linear):
            linear.before(InputFactor(linear.in_features, linear.axis))
        else:
            linear.after(OutputFactor(linear.ranges, linear.axis))

    def lower(self, linear: LinearSite, module: OutputFactor | InputFactor) -> bool:
        """W = diag(factor) W and b = factor * b, or W = W diag(factor)."""
        if isinstance(module, InputFactor):
            return linear.fold_before(module.factor)
        return linear.fold(scale=[part["factor"] for part in self.delta(module)])

    def delta(self, module: OutputFactor | InputFactor) -> list[dict[str, torch.Tensor]]:
        """The factor of each part."""
        if isinstance(module, InputFactor):
            return [{"factor": module.factor}]
        sizes = [sum(b - a for a, b in part) for part in module.ranges]
        return [{"factor": factor} for factor in torch.split(module.factor, sizes)]

    def update(self, module: OutputFactor | InputFactor) -> Rescaling:
        """A factor for each channel."""
        return Rescaling("factor", of_input=isinstance(module, InputFactor))

    def of_input(self, linear: LinearSite) -> bool:
        """Whether the input is multiplied; that of rows cannot be, as the other rows read it."""
        if self.side == "paper":
            return linear.ends_mlp
        whole = linear.ranges == (((0, linear.out_features),),)
        linear.expect(
            whole or self.side == "output",
            "side",
            "the input of some rows is that of the other rows, too,",
        )
        return self.side == "input"
