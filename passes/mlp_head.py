"""MLP-k: the head becomes an MLP of k linear layers, and the model in front of it stays frozen.

What it does
    Puts k - 1 hidden layers between what the head reads and the classes.

Source
    Jia et al., "Visual Prompt Tuning", ECCV 2022, baseline "MLP-k". The tables' MLP-3 has two
    hidden layers.

Attaches to
    The head. A model with two of them, such as a distilled one, gets an MLP at each.

Parameters
    hidden.{i} linear [d, d], its weight Kaiming-normal by fan-out, its bias as torch draws it;
    norms.{i} batch norm [d]; out linear [classes, d], drawn as torch's linear layers are. d is the
    width that the head reads. All trained; the old head goes.

Forward
    x = drop(norm_i(relu(hidden_i(x)))) for every i, then out(x). A batch norm takes statistics of
    the batch in training, so a batch has at least two images there.

Exactness
    Lowering folds every batch norm into the linear layer behind it, exactly but for rounding.

Example
    replace head with mlp_head(layers=3)
    train head
    adds 1,184,256 parameters to ViT-B/16: two layers of 768 x 768 with biases, two norms.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from vitrewrite.authoring import HeadSite, Pass, option


class MlpHead(nn.Module):
    """`layers` linear layers with relu, batch norm and dropout between; without norms if folded."""

    inserted_by = "mlp_head"

    def __init__(
        self, width: int, classes: int, layers: int, dropout: float = 0.0, folded: bool = False
    ) -> None:
        super().__init__()
        self.width, self.classes, self.layers = width, classes, layers
        self.dropout, self.folded = dropout, folded
        between = range(layers - 1)
        self.hidden = nn.ModuleList([nn.Linear(width, width) for _ in between])
        self.norms = nn.ModuleList([] if folded else [nn.BatchNorm1d(width) for _ in between])
        self.out = nn.Linear(width, classes)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws the linear layers; norms start as the identity, but for their statistics."""
        bound = 1 / math.sqrt(self.width)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", generator=generator)
                nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
            elif isinstance(layer, nn.BatchNorm1d):
                layer.reset_parameters()
        nn.init.uniform_(self.out.weight, -bound, bound, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The scores [batch, classes] of features [batch, width]."""
        for i, layer in enumerate(self.hidden):
            x = F.relu(layer(x))
            if not self.folded:
                x = F.dropout(self.norms[i](x), self.dropout, self.training)
        scores: torch.Tensor = self.out(x)
        return scores


@dataclass(frozen=True)
class MlpK(Pass):
    """An MLP as the head."""

    verbs: ClassVar[tuple[str, ...]] = ("replace",)
    attaches: ClassVar[tuple[str, ...]] = ("head",)
    source: ClassVar[str] = "Jia et al., ECCV 2022"
    claims: ClassVar[tuple[str, ...]] = ("lowers_exactly",)
    sole: ClassVar[str] = "readout"

    layers: int = option(
        3, minimum=2, maximum=64, help="linear layers, the one that makes the classes included"
    )
    dropout: float = option(0.1, minimum=0, below=1, help="behind hidden layers, in training only")

    def rewrite(self, head: HeadSite) -> None:
        """The classes are made by an MLP of what the head reads."""
        head.replace(MlpHead(head.in_features, head.out_features, self.layers, self.dropout))

    def lower(self, head: HeadSite, mlp: MlpHead) -> bool:
        """W = W diag(scale), b = b + W shift, for the norm in front of each layer."""
        if mlp.folded:
            return False
        with torch.device("meta"):  # every tensor is put in its place
            new = MlpHead(mlp.width, mlp.classes, mlp.layers, folded=True)
        new.hidden[0] = mlp.hidden[0]
        for i, norm in enumerate(mlp.norms):
            behind = mlp.hidden[i + 1] if i + 1 < len(mlp.hidden) else mlp.out
            made = folded(norm, behind)
            if behind is mlp.out:
                new.out = made
            else:
                new.hidden[i + 1] = made
        head.swap(new)
        return False


def folded(norm: nn.Module, layer: nn.Module) -> nn.Linear:
    """A linear layer that holds the batch norm in front of it."""
    assert isinstance(norm, nn.BatchNorm1d)
    assert isinstance(layer, nn.Linear)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    wide = torch.promote_types(layer.weight.dtype, torch.float32)
    scale = norm.weight.to(wide) / (norm.running_var.to(wide) + norm.eps).sqrt()
    shift = norm.bias.to(wide) - scale * norm.running_mean.to(wide)
    weight = layer.weight.to(wide)
    made = nn.Linear(layer.in_features, layer.out_features, device="meta")
    made.weight = nn.Parameter((weight * scale).to(layer.weight.dtype))
    bias = layer.bias.to(wide) + weight @ shift
    made.bias = nn.Parameter(bias.to(layer.bias.dtype))
    return made
