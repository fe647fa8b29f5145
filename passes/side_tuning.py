"""Side-tuning: a small image network beside the frozen model, and a learned blend of the two.

What it does
    Runs the convolutions of AlexNet on the image, and has the head read a weighted mean of what the
    model and this network make of it. The model stays as it is.

Source
    Zhang, Sax, Zamir, Guibas, Malik, "Side-Tuning: A Baseline for Network Adaptation via Additive
    Side Networks", ECCV 2020; for vision transformers as in the code of VPT (Jia et al., ECCV
    2022).

Attaches to
    The head of a model that is given images of 63 pixels a side at least. Nothing in front of it
    may be trained, and no other clause may have the head read something else.

Parameters
    side: the five convolutions of AlexNet, 2,469,696 numbers, under the numbers that torchvision's
    `features` have, so that weights of those fit (`side.load_state_dict`); drawn as torch's
    convolutions are. side_projection.weight [d, 9216], drawn as torch's linear layers are.
    side_alpha [1], 0. d is the width that the head reads. All trained; the head is, by `train
    head`.

Forward
    a = sigmoid(side_alpha), z = a x + (1 - a) side_projection(side(image)), where x is what the
    head read, without gradient, and side ends in an average over 6x6 places. The head reads z.

Exactness
    Another output from the start. Lowered, a is a number that scales x, and 1 - a goes into the
    projection.

Example
    insert side_tuning() before head
    train head
    adds 9,547,585 parameters to ViT-B/16.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from vitrewrite.authoring import HeadSite, Pass

SMALLEST = 63
"""The shortest side of an image that AlexNet's convolutions and poolings leave something of."""


class SideNetwork(nn.Module):
    """a x + (1 - a) projection(side(image)); with `folded` a is `share`, and 1 - a is in there."""

    inserted_by = "side_tuning"
    share: torch.Tensor

    def __init__(self, channels: int, dim: int, folded: bool = False) -> None:
        super().__init__()
        self.channels, self.dim, self.folded = channels, dim, folded
        self.side = nn.Sequential(
            nn.Conv2d(channels, 64, 11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
        )
        self.pool = nn.AdaptiveAvgPool2d(6)
        self.side_projection = nn.Linear(256 * 36, dim, bias=False)
        if folded:
            self.register_buffer("share", torch.zeros(1))
        else:
            self.side_alpha = nn.Parameter(torch.zeros(1))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws all layers as torch does; the blend is even."""
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                bound = layer.weight[0].numel() ** -0.5
                nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
                if layer.bias is not None:
                    nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
        if not self.folded:
            nn.init.zeros_(self.side_alpha)

    def forward(self, x: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """What the head reads, [batch, dim]."""
        made: torch.Tensor = self.side_projection(self.pool(self.side(image)).flatten(1))
        if self.folded:
            return self.share * x + made
        share = torch.sigmoid(self.side_alpha)
        return share * x + (1 - share) * made


@dataclass(frozen=True)
class SideTuning(Pass):
    """A small network beside the model, blended with it."""

    verbs: ClassVar[tuple[str, ...]] = ("insert before",)
    attaches: ClassVar[tuple[str, ...]] = ("head",)
    source: ClassVar[str] = "Zhang et al., ECCV 2020"
    claims: ClassVar[tuple[str, ...]] = ()
    sole: ClassVar[str] = "readout"

    def rewrite(self, head: HeadSite) -> None:
        """The head reads a x + (1 - a) side(image)."""
        if len(head.siblings) > 1:
            raise head.unfit("the model has several heads")
        if min(head.image_size) < SMALLEST:
            height, width = head.image_size
            raise head.unfit(
                f"AlexNet leaves nothing of images of {height}x{width}",
                suggestion=f"give the model an img_size of {SMALLEST} or more",
            )
        x, image = head.from_frozen(head.features, "x"), head.image
        head.warn("the side network starts with drawn numbers, and published results with trained")
        network = SideNetwork(head.shape_of(image)[1], head.in_features)
        head.feed(network, x, image, pooled=False)
        head.reads("model", "side network")

    def weights(self, network: SideNetwork, given: Sequence[object]) -> dict[str, torch.Tensor]:
        """a of the model, and 1 - a of what is beside it."""
        share = network.share if network.folded else torch.sigmoid(network.side_alpha.detach())
        return {"share": torch.cat([share, 1 - share])}

    def lower(self, head: HeadSite, network: SideNetwork) -> bool:
        """a becomes a number, and 1 - a goes into the projection."""
        if network.folded:
            return False
        share = torch.sigmoid(network.side_alpha.detach().double())
        old = network.side_projection.weight
        with torch.device("meta"):  # every tensor is put in its place
            new = SideNetwork(network.channels, network.dim, folded=True)
        new.side, new.share = network.side, share.to(old.dtype)
        data = ((1 - share) * old.double()).to(old.dtype)
        new.side_projection.weight = nn.Parameter(data, requires_grad=False)
        head.swap(new)
        return False
