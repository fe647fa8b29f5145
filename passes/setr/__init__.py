"""SETR-PUP: class scores for every pixel from blocks of a plain vision transformer.

What it does
    Takes the place of the classifier. The patches behind the last tap are a map, which four
    convolutions upsample step by step to sixteen times its sides; a last one makes the classes.
    Smaller heads on the other taps do the same for the loss: only training computes them.

Source
    Zheng et al., "Rethinking Semantic Segmentation from a Sequence-to-Sequence Perspective with
    Transformers", CVPR 2021. `aux=mmseg` is the head of MMSegmentation, which VPT and SPT were
    tuned with; `aux=authors` that of the authors' repository.

Attaches to
    The head of a model whose blocks hold the full grid of patches in one sequence.

Parameters
    head.main and head.aux.{j}: norm; convs.{i}.conv [256, D or 256, 3, 3], Kaiming-normal by its
    outputs, convs.{i}.bn; classifier [K, 256, 1, 1], N(0, 0.01), bias 0. With `aux=authors`
    convolutions have a bias, 0. Trained. A last norm that only the classifier read is gone.

Forward
    f = LN(patches of the tap) as a map [B, D, h, w]; prefix tokens and prompts are left out
    f = up_2(relu(BN(conv(f)))), four times; scores = classifier(f)             main
    the same with up_4, twice                                                   aux, mmseg
    classifier in front of the last up_2                                        main, authors
    one convolution, classifier, up to the sides of the image                   aux, authors
    Upsampling is bilinear. Evaluation yields scores [B, K, 16 h, 16 w]; training (scores, *aux),
    and the loss is that of the task plus `aux_weight` times that of each of aux.

Exactness
    Another output. Lowers to convolutions that hold their batch norms, without aux: exact in
    evaluation.

Example
    replace head with setr(classes=150)
    on ViT-L/16 at 512x512 trains 13,143,640 parameters, 4,171,414 of them stay when it is lowered;
    63.2 GMAC beside 362.0 of the blocks.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from vitrewrite.authoring import HeadSite, Pass, folded, option

if TYPE_CHECKING:
    from .losses import AuxiliaryLosses

SIDE = 16
"""How much higher and wider than the grid the scores are."""
PUBLISHED = (10, 15, 20, 24)
"""Blocks out of 24 that the heads read, counted from one."""


class UpsamplingConv(nn.Module):
    """relu(bn(conv(x))) for a map [B, C, h, w], its sides `factor` times longer."""

    def __init__(
        self, inputs: int, outputs: int, factor: int, biased: bool, folded: bool = False
    ) -> None:
        super().__init__()
        self.factor = factor
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=biased or folded)
        self.bn = nn.Identity() if folded else nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The map, [B, outputs, factor h, factor w]."""
        x = F.relu(self.bn(self.conv(x)))
        if self.factor == 1:
            return x
        return F.interpolate(x, scale_factor=self.factor, mode="bilinear", align_corners=False)


class PupHead(nn.Module):
    """Scores of classes from a map of patches [B, h, w, D].

    The convolutions upsample by `factors`, the scores by `last`.
    """

    def __init__(
        self,
        dim: int,
        width: int,
        classes: int,
        factors: tuple[int, ...],
        last: int,
        biased: bool,
        folded: bool = False,
    ) -> None:
        super().__init__()
        self.last = last
        inputs = (dim, *(width for _ in factors[1:]))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.convs = nn.ModuleList(
            UpsamplingConv(n, width, factor, biased, folded)
            for n, factor in zip(inputs, factors, strict=True)
        )
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The scores, [B, classes, ...]."""
        x = self.norm(x).permute(0, 3, 1, 2)
        for conv in self.convs:
            x = conv(x)
        x = self.classifier(x)
        if self.last == 1:
            return x
        return F.interpolate(x, scale_factor=self.last, mode="bilinear", align_corners=False)


class SetrHeads(nn.Module):
    """The main head on the last tap, and heads on others that training alone computes.

    Once `folded`, convolutions hold their batch norms.
    """

    inserted_by = "setr"

    def __init__(
        self,
        dim: int,
        width: int,
        classes: int,
        taps: int,
        kind: str | None,
        side: int,
        folded: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.width, self.classes = dim, width, classes
        self.taps, self.kind, self.side, self.folded = taps, kind, side, folded
        biased = kind == "authors"
        steps: tuple[int, ...] = (2, 2, 2, 1 if biased else 2)
        self.main = PupHead(dim, width, classes, steps, 2 if biased else 1, biased, folded)
        steps, last = ((1,), side) if biased else ((4, 4), 1)
        count = 0 if kind is None or folded else taps if biased else taps - 1
        self.aux = nn.ModuleList(
            PupHead(dim, width, classes, steps, last, biased) for _ in range(count)
        )

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws all weights anew, as MMSegmentation does."""
        for module in self.modules():
            if isinstance(module, UpsamplingConv):
                nn.init.kaiming_normal_(
                    module.conv.weight, mode="fan_out", nonlinearity="relu", generator=generator
                )
            elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
                module.reset_parameters()
            elif isinstance(module, PupHead):
                nn.init.normal_(module.classifier.weight, std=0.01, generator=generator)
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, *maps: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Scores [B, classes, 16 h, 16 w]; in training those of the other heads too."""
        scores: torch.Tensor = self.main(maps[-1])
        if not self.training or not len(self.aux):
            return scores
        return scores, *(head(x) for head, x in zip(self.aux, maps, strict=False))


@dataclass(frozen=True)
class Setr(Pass):
    """Progressive upsampling from one block, supervised at others."""

    verbs: ClassVar[tuple[str, ...]] = ("replace",)
    attaches: ClassVar[tuple[str, ...]] = ("head",)
    source: ClassVar[str] = "Zheng et al., CVPR 2021"
    claims: ClassVar[tuple[str, ...]] = ("lowers_exactly",)
    reads: ClassVar[tuple[str, ...]] = ("grid",)
    sole: ClassVar[str] = "readout"

    classes: int = option(150, minimum=2, help="classes that are told apart")
    width: int = option(256, minimum=1, help="channels of the convolutions")
    taps: tuple[int, ...] = option(
        (),
        help="blocks that are read, in order; 9, 14, 19 and 23 of 24 by default, or likewise",
    )
    aux: str | None = option(
        "mmseg",
        choices=("mmseg", "authors"),
        help="heads for the loss: on all taps but the last; as in the authors' code; or none",
    )
    aux_weight: float = option(
        0.4, minimum=0, needs="aux is not None", help="of the loss of each of them"
    )

    def rewrite(self, head: HeadSite) -> None:
        """The new head reads the patches behind the taps."""
        if len(head.siblings) > 1:
            raise head.unfit("the model has several heads")
        taps = self.tapped(head)
        blocks = [head.blocks[i] for i in (taps if self.aux is not None else taps[-1:])]
        maps = [block.output.patches for block in blocks]
        self.check(head)
        made = SetrHeads(
            blocks[-1].dim, self.width, self.classes, len(maps), self.aux, head.patch_size[0]
        )
        head.replace(made, *maps, pooled=False)

    def lower(self, head: HeadSite, heads: SetrHeads) -> bool:
        """The main head alone, its batch norms in its convolutions."""
        if heads.folded:
            return False
        with torch.device("meta"):  # every tensor is put in its place
            new = SetrHeads(
                heads.dim, heads.width, heads.classes, 1, heads.kind, heads.side, folded=True
            )
        new.main.norm, new.main.classifier = heads.main.norm, heads.main.classifier
        for old, made in zip(convs_of(heads.main), convs_of(new.main), strict=True):
            made.conv = folded(old.conv, old.bn)
        head.swap(new, given=[-1])
        return False

    def procedure(self) -> "AuxiliaryLosses | None":
        """The losses of the other heads."""
        if self.aux is None:
            return None
        from .losses import AuxiliaryLosses

        return AuxiliaryLosses(self.aux_weight)

    def tapped(self, head: HeadSite) -> tuple[int, ...]:
        """The blocks that are read."""
        depth = len(head.blocks)
        default = sorted({max(0, round(i / PUBLISHED[-1] * depth) - 1) for i in PUBLISHED})
        taps = self.taps or tuple(default)
        head.expect(
            all(0 <= i < depth for i in taps),
            "taps",
            f"{max(taps)} is none of {depth} blocks",
            notes=[f"valid: 0..{depth - 1}"],
        )
        increasing = all(a < b for a, b in pairwise(taps))
        head.expect(increasing, "taps", f"blocks {taps} are not in increasing order")
        return taps

    def check(self, head: HeadSite) -> None:
        """Images must be whole patches, and sides that four upsamplings can reach."""
        height, width = head.image_size
        if height % SIDE or width % SIDE:
            near = f"{max(1, round(height / SIDE)) * SIDE}x{max(1, round(width / SIDE)) * SIDE}"
            raise head.unfit(
                f"sides of {height}x{width} are not multiples of {SIDE}",
                suggestion=f"build the model for {near}",
            )
        down, across = head.patch_size
        if down != across:
            raise head.unfit(f"its patches of {down}x{across} pixels are no squares")


def convs_of(head: PupHead) -> list[UpsamplingConv]:
    """The convolutions of a head, in order."""
    return [conv for conv in head.convs if isinstance(conv, UpsamplingConv)]
