"""Head2Toe: a linear head on features of all layers, of which few are kept.

What it does
    Replaces the head by one that reads, of every block, what its first norm, its attention, the
    hidden units and the output of its MLP yield, averaged over tokens. Training finds out which of
    these features a task needs, and trains a new head on them. The model stays as it is.

Source
    Evci, Dumoulin, Larochelle, Mozer, "Head2Toe: Utilizing Intermediate Representations for Better
    Transfer Learning", ICML 2022.

Attaches to
    The head of a model whose blocks are over one sequence of tokens. Nothing in front of it may be
    trained, no tokens merged, and no other clause may have the head read something else.

Parameters
    weight [classes, F] and bias [classes], drawn as torch's linear layers are; a buffer kept [F]
    once features are selected: by tap their positions in it, in falling order of their score. F is
    the number of features that are read; both trained.

Forward
    A tap [tokens, C] is averaged over all of its tokens, those in front of the patches included;
    with `target` over windows of int(tokens / (target / C)) tokens that follow each other, what is
    left over at the end is not read, and windows stand one after the other. With a selection only
    what is kept of a tap is taken then. What is there of a tap is divided by its length, 1e-12 at
    least; all that together is multiplied with the weight. The first tap is what the old head read,
    [C]. Taps are read without gradient.
    `tune` trains a head on all features with `penalty` times the sum over features of the lengths
    of the head's columns; a feature's score is the sum of squares of its column. The share
    `fraction` of them with the highest scores stays, of equal ones the first, and a new head is
    trained on these without penalty. As published the first is trained by Adam, a rate of 0.1 that
    falls by a cosine, for 500 steps of 128 images.

Exactness
    A new head, as any before it is trained; tokens are bit for bit those of the model. Once
    features are selected, taps of which none is kept are not computed, nor are blocks behind the
    last one that is; which are kept is in the lock file.

Example
    replace head with head2toe(fraction=0.01)
    reads 65,280 features of ViT-B/16, and leaves a head of 65,200 weights for 100 classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from vitrewrite.authoring import BlockSite, HeadSite, Pass, Value, option

if TYPE_CHECKING:
    from .selection import TrainSelectTrain

POOLED = "head"
"""The name of the tap that is what the old head read."""


class TapsHead(nn.Module):
    """A linear layer over averages of taps, each divided by its length.

    Of tap i features[i] are read: all that its windows of windows[i] tokens have, 0 being one of
    all tokens; or with `selected` those at the positions in `kept`.
    """

    inserted_by = "head2toe"
    kept: torch.Tensor

    def __init__(
        self,
        features: tuple[int, ...],
        windows: tuple[int, ...],
        classes: int,
        selected: bool = False,
    ) -> None:
        super().__init__()
        self.features, self.windows = features, windows
        self.classes, self.selected = classes, selected
        self.weight = nn.Parameter(torch.empty(classes, sum(features)))
        self.bias = nn.Parameter(torch.empty(classes))
        if selected:
            self.register_buffer("kept", torch.zeros(sum(features), dtype=torch.long))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws the layer."""
        bound = 1 / math.sqrt(self.weight.shape[1])
        nn.init.uniform_(self.weight, -bound, bound, generator=generator)
        nn.init.uniform_(self.bias, -bound, bound, generator=generator)

    def forward(self, *taps: torch.Tensor) -> torch.Tensor:
        """The scores [batch, classes] of taps [batch, tokens, channels] or [batch, channels]."""
        return self.finish(*self.condense(*taps))

    def condense(self, *taps: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The averages, which hang on nothing that is trained: `tune` can keep them."""
        return tuple(self.averaged(*each) for each in zip(taps, self.windows, strict=True))

    def finish(self, *averages: torch.Tensor) -> torch.Tensor:
        """The scores of what `condense` yields."""
        return F.linear(self.joined(*averages), self.weight, self.bias)

    def representation(self, *taps: torch.Tensor) -> torch.Tensor:
        """What the weight is multiplied with, [batch, F]."""
        return self.joined(*self.condense(*taps))

    def joined(self, *averages: torch.Tensor) -> torch.Tensor:
        """What is read of averages, each divided by its length."""
        if self.selected:
            averages = self.chosen(*averages)
        return torch.cat([F.normalize(piece, dim=-1, eps=1e-12) for piece in averages], dim=-1)

    def chosen(self, *averages: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Of each average what is kept."""
        kept = torch.split(self.kept, list(self.features))
        return tuple(piece[:, at] for piece, at in zip(averages, kept, strict=True))

    def averaged(self, tap: torch.Tensor, window: int) -> torch.Tensor:
        """A tap as one vector."""
        if tap.dim() == 2:
            return tap
        if not window:
            return tap.mean(1)
        return F.avg_pool1d(tap.transpose(1, 2), window, window).transpose(1, 2).flatten(1)


@dataclass(frozen=True)
class Head2Toe(Pass):
    """A head on selected features of all layers."""

    verbs: ClassVar[tuple[str, ...]] = ("replace",)
    attaches: ClassVar[tuple[str, ...]] = ("head",)
    source: ClassVar[str] = "Evci et al., ICML 2022"
    claims: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[tuple[str, ...]] = ("prefix", "size")
    sole: ClassVar[str] = "readout"

    fraction: float = option(0.1, above=0, maximum=1, help="share of the features that stays")
    penalty: float = option(
        1e-4, minimum=0, help="on the lengths of the head's columns, until features are selected"
    )
    taps: tuple[str, ...] = option(
        ("norm", "attn", "hidden", "mlp"),
        choices=("norm", "attn", "hidden", "mlp", "block"),
        help="what is read of every block: what its first norm, attention, activation, MLP yields, "
        "or the block",
    )
    target: int | None = option(
        None, minimum=1, help="features of a tap, by averages over windows; those of one by default"
    )
    kept: tuple[int, ...] = option(
        (), minimum=0, help="features that are read, by number over all taps; 'tune' finds them"
    )

    def rewrite(self, head: HeadSite) -> None:
        """logits = W [taps by their lengths] + b."""
        head.expect(self.taps, "taps", "no tap is named", suggestion="taps=[mlp]")
        head.expect(len({*self.taps}) == len(self.taps), "taps", "a tap is named twice")
        if len(head.siblings) > 1:
            raise head.unfit("the model has several heads")
        read = {POOLED: head.features}
        for block in head.blocks:
            read |= {f"{block.role}.{tap}": self.tapped(block, tap) for tap in self.taps}
        shapes = {name: head.shape_of(value) for name, value in read.items()}
        windows = {name: self.window(head, shape) for name, shape in shapes.items()}
        counts = {name: features(shapes[name], windows[name]) for name in read}
        kept = self.read(head, counts)
        sizes = tuple(map(len, kept.values())), tuple(windows[name] for name in kept)
        made = TapsHead(*sizes, head.out_features, bool(self.kept))
        if made.selected:
            order = [i for positions in kept.values() for i in positions]
            made.kept = torch.tensor(order, device="cpu")
        elif self.fraction < 1:
            head.warn("no features are selected yet: 'vitrewrite tune' finds what to keep")
        head.replace(
            made, *(head.from_frozen(read[k], k.rpartition(".")[2]) for k in kept), pooled=False
        )
        head.reads(*kept)

    def read(self, head: HeadSite, counts: Mapping[str, int]) -> dict[str, Sequence[int]]:
        """By tap the positions of the features that are read; all before any are selected."""
        if not self.kept:
            return {name: range(count) for name, count in counts.items()}
        total = sum(counts.values())
        head.expect(
            max(self.kept) < total,
            "kept",
            f"{max(self.kept)} is none of {total} features",
            notes=[f"valid: 0..{total - 1}"],
        )
        head.expect(len({*self.kept}) == len(self.kept), "kept", "a feature is named twice")
        found, start = {}, 0
        for name, count in counts.items():
            found[name] = [i - start for i in self.kept if start <= i < start + count]
            start += count
        return {name: positions for name, positions in found.items() if positions}

    def tapped(self, block: BlockSite, tap: str) -> Value:
        """What a tap of a block reads."""
        if not block.input.is_sequence or not block.has_patches or block.attn.windowed:
            raise block.unfit("it is not over one sequence of tokens")
        if by := block.cause("size"):
            raise block.unfit(
                "an average counts tokens alike, and some stand for several patches",
                notes=[f"merged by: {by}"],
            )
        if tap == "norm":
            block.expect(block.norms, "taps", "the block has no norm")
            return block.norms[0].output
        if tap == "attn":
            return block.attn.result
        if tap == "block":
            return block.leaving.value
        return block.mlp.activated if tap == "hidden" else block.mlp.result

    def window(self, head: HeadSite, shape: tuple[int, ...]) -> int:
        """How many tokens an average is over; 0 for all of them."""
        if self.target is None or len(shape) == 2 or shape[2] >= self.target:
            return 0
        window = int(shape[1] / (self.target / shape[2]))
        most = shape[1] * shape[2]
        head.expect(
            window,
            "target",
            f"{self.target} are more than {shape[1]} tokens have",
            notes=[f"valid: at most {most}"],
        )
        return window

    def weights(self, module: TapsHead, given: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """How many features of each tap are read, and how long their columns are."""
        parts = torch.split(module.weight.detach().float(), [*module.features], 1)
        counts = torch.tensor([float(part.shape[1]) for part in parts])
        return {"features read": counts, "norm of columns": torch.stack([p.norm() for p in parts])}

    def procedure(self) -> TrainSelectTrain:
        """Train on all, select, train on what is kept."""
        from .selection import TrainSelectTrain

        return TrainSelectTrain(self.fraction, self.penalty)


def features(shape: Sequence[int], window: int) -> int:
    """How many features a tap has."""
    return shape[-1] * (shape[1] // window if window else 1)
