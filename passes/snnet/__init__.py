"""SN-Net: many networks out of two or three of one family, by linear layers between their blocks.

What it does
    A stitch runs the first blocks of a small model, a linear layer, and the last blocks of a larger
    one. All stitches share the weights of the models, which are stitched in the order of the
    clause, each with the next. Every model by itself is a stitch too.

Source
    Pan, Cai, Zhuang, "Stitchable Neural Networks", CVPR 2023. Final norm of the end: as the paper
    has it; the authors' code of plain models leaves it out of stitches, as `final_norm=false` does.
    The rule `multiple` is that of the authors' second paper.

Attaches to
    Two or three models of one image size, number of classes and positions, by `stitch`. Their
    blocks take the stream and nothing else. In models with stages blocks are joined inside of a
    stage, the last one left out.

Parameters
    stitches.{i}.weight [d2, d1] and bias [d2], numbered over all pairs of models: truncated normal
    of std 0.02 and zero, or least squares on calibration images. Trained; so is what `train` says.
    With `layers=lora` both are frozen, and down [r, d1] (normal of std 0.02) and up [d2, r] (zero)
    are trained. With `biases` table [s, d2], a row (zero) for each of the s stitches through it.

Forward
    x = beginning of the front(image); x = its blocks 0..j(x)
    x = x W^T + b                                  each token, or each position of a map
    and with ESTA's options + up(down(x)) + table[stitch that runs].
    x = blocks k + offset.. of the end(x); y = its end(x), final norm included
    The output of the model is that of each base; `stitch(image, number)` runs one stitch.
    Stitch numbers: the models, then the pairs of each two models in turn. With `nearest=false`
    then those of the first with the third, and the chains: a pair (j1, k1) and a pair (j2, k2) of
    the next two models with j2 >= k1. ViT-Ti/S/B: 3 + 34 + 34, and 34 and 627 more.
    Pairs at equal depth: a window of `kernel` blocks slides by `stride`; all (j, k) in it are
    pairs, by the layer of the first window that holds them. At unequal depth (floor(e Lf / Le), e).

Exactness
    One stitch lowers to a model of its own, which is exact.

Example
    stitch small=vit_small_patch16_224, base=vit_base_patch16_224 with snnet(kernel=2, stride=1)
    adds 3,252,480 parameters in 11 layers, and makes 36 stitches.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from vitrewrite.authoring import Anchor, BasesSite, Pass, option

from .layers import AdaptedStitchingLayer, StitchingLayer
from .space import Pair, by_stage, multiple_pairs, nearest_pairs, numbered, window_pairs


class Joint(NamedTuple):
    """A pair of blocks of two models.

    Attributes:
        after: the last block of the front that runs.
        layer: what pairs that share a layer have in common.
        before: the first block of the end that runs.
    """

    front: Anchor
    after: int
    layer: tuple[int, int]
    end: Anchor
    before: int

    @property
    def key(self) -> Any:
        """Of the layer, over all models."""
        return self.front.name, self.end.name, self.layer


def chained(joints: list[Joint]) -> Iterator[tuple[int, int]]:
    """Places of two pairs in turn: the model between is left behind where it was entered."""
    for (i, one), (k, two) in itertools.product(enumerate(joints), repeat=2):
        if one.end.name == two.front.name and two.after >= one.before:
            yield i, k


@dataclass(frozen=True)
class Snnet(Pass):
    """Linear layers between the blocks of models, and all paths through them."""

    verbs: ClassVar[tuple[str, ...]] = ("stitch",)
    attaches: ClassVar[tuple[str, ...]] = ("bases",)
    source: ClassVar[str] = "Pan, Cai and Zhuang, CVPR 2023"
    claims: ClassVar[tuple[str, ...]] = ()

    kernel: int = option(2, minimum=1, maximum=64, help="blocks in the window, at equal depth")
    stride: int = option(1, minimum=1, maximum=64, help="blocks by which the window slides")
    offset: int | None = option(
        None,
        minimum=0,
        maximum=1,
        help="end blocks behind the paired one run from it (0) or from the next (1); "
        "0 at equal depth and 1 at unequal by default, 0 in stages",
    )
    ends: str = option(
        "all",
        choices=("all", "inner"),
        help="whether all pairs count, or those that leave out a part of both models",
    )
    unequal: str = option(
        "nearest", choices=("nearest", "multiple"), help="the rule for models of unequal depth"
    )
    private: bool = option(False, help="whether each pair has a layer of its own")
    samples: int = option(
        100, minimum=1, maximum=1_000_000, help="images of data= that layers are solved from"
    )
    layers: str = option(
        "full",
        choices=("full", "lora"),
        help="whether the layers between models train, or a low-rank update of them (ESTA)",
    )
    rank: int | None = option(
        None,
        minimum=1,
        maximum=65536,
        needs="layers == 'lora'",
        help="of the update; a quarter of the front's width by default",
    )
    biases: bool = option(False, help="whether each stitch has a bias of its own at them (ESTA)")
    descending: bool = option(False, help="whether a front may be wider than its end")
    nearest: bool = option(
        True, help="whether only neighbours are stitched, or all pairs, and all three in turn"
    )
    final_norm: bool = option(
        True,
        help="whether stitches have that of their end, as in the paper, not the code",
    )

    def rewrite(self, site: BasesSite) -> None:
        """Every model by itself, then every pair of blocks of each two in turn."""
        if self.stride > self.kernel:
            message = f"stride {self.stride} leaves out blocks between windows of {self.kernel}"
            raise site.wrong("stride", message)
        site.calibrate(self.samples)
        for anchor in site.anchors:
            site.alone(anchor)
        if not self.final_norm:
            site.without_norms()
        self.stitch(site, list(self.joints(site)))

    def joints(self, site: BasesSite) -> Iterator[Joint]:
        """All pairs of blocks, of neighbours first."""
        anchors = site.anchors
        far = [] if self.nearest else [anchors[::2]] * (len(anchors) == 3)
        for front, end in (*itertools.pairwise(anchors), *far):
            site.expect_alike(front, end)
            if front.dims[0] > end.dims[0] and not self.descending:
                message = f"'{front.name}' is wider than '{end.name}': stitches lead to the larger"
                raise site.wrong("descending", message)
            for stage, pair, before in self.pairs(site, front, end):
                yield Joint(front, pair.front, (stage, pair.layer), end, before)

    def stitch(self, site: BasesSite, joints: list[Joint]) -> None:
        """A stitch for each pair, by layers that some share, and one for each two in turn."""
        first = site.count
        chains = [] if self.nearest else list(chained(joints))
        used: dict[Any, list[int]] = {}
        for number, joint in enumerate(joints, first):
            used.setdefault(joint.key, []).append(number)
        for number, chain in enumerate(chains, first + len(joints)):
            for i in chain:
                used[joints[i].key].append(number)
        layers: dict[Any, int] = {}
        for joint in joints:
            front, end, before = joint.front, joint.end, joint.before
            if joint.key not in layers:
                widths = front.dims[joint.after], end.dims[before - 1 if before else 0]
                made = self.layer(site, widths, front.is_map, tuple(used[joint.key]))
                layers[joint.key] = site.layer(made)
            site.stitch(front, joint.after, layers[joint.key], end, before)
        for one, two in chains:
            site.chain(first + one, first + two)

    def layer(
        self, site: BasesSite, widths: tuple[int, int], maps: bool, stitches: tuple[int, ...]
    ) -> nn.Module:
        """What some stitches go through."""
        if self.layers == "full" and not self.biases:
            return StitchingLayer(*widths, maps=maps)
        rank = 0 if self.layers == "full" else self.rank or max(1, widths[0] // 4)
        if rank > min(widths):
            message = f"rank {rank} is above the width {min(widths)} of a layer"
            raise site.wrong("rank", message)
        return AdaptedStitchingLayer(*widths, maps, rank, stitches if self.biases else ())

    def pairs(self, site: BasesSite, front: Anchor, end: Anchor) -> list[tuple[int, Pair, int]]:
        """Stage, pair and first end block of each stitch, blocks counted over the models."""
        first, last = list(by_stage(front.stages)), list(by_stage(end.stages))
        if len(first) != len(last):
            message = f"'{front.name}' has {len(first)} stages, and '{end.name}' {len(last)}"
            raise site.wrong("kernel", message)
        staged = len(first) > 1
        found = []
        for stage in range(len(first) - staged):
            (i, count), (k, length) = first[stage], last[stage]
            offset = self.offset
            if offset is None:
                offset = int(count != length and not staged)
            for pair in self.candidates(site, count, length, offset, staged):
                place = pair._replace(front=i + pair.front, end=k + pair.end)
                found.append((stage, place, place.end + offset))
        if not found:
            raise site.wrong("ends", f"no pair of '{front.name}' and '{end.name}' is left")
        return found

    def lower(self, site: BasesSite, module: Any) -> bool:
        """A plain layer, a convolution of kernel one for maps; rows stay while stitches differ."""
        weight, bias = (module.weight, module.bias)
        if isinstance(module, AdaptedStitchingLayer):
            weight, bias = map(nn.Parameter, module.whole())
            if site.taken_out in module.stitches:
                bias = nn.Parameter(bias + module.table[module.stitches.index(site.taken_out)])
            elif module.stitches:
                self.keep_rows(site, module, weight, bias)
                return False
        with torch.device("meta"):
            kind = nn.Conv2d(module.inputs, module.outputs, 1) if module.maps else None
            plain = kind or nn.Linear(module.inputs, module.outputs)
        plain.weight, plain.bias = weight, bias
        site.swap(plain)
        return False

    def keep_rows(
        self, site: BasesSite, module: Any, weight: nn.Parameter, bias: nn.Parameter
    ) -> None:
        """The layer without its update, and with a bias for each stitch."""
        with torch.device("meta"):
            made = AdaptedStitchingLayer(
                module.inputs, module.outputs, module.maps, 0, module.stitches
            )
        made.weight, made.bias, made.table = weight, bias, module.table
        site.swap(made)

    def candidates(
        self, site: BasesSite, front: int, end: int, offset: int, staged: bool
    ) -> list[Pair]:
        """The pairs of so many blocks with so many others."""
        if front == end:
            pairs = window_pairs(front, self.kernel, self.stride)
            pairs = [p for p in pairs if p.front < p.end] if staged else pairs
        elif front > end:
            message = f"the front has {front} blocks, and the end {end}: it is to be the deeper"
            raise site.wrong("unequal", message)
        elif self.unequal == "multiple":
            pairs = multiple_pairs(front, end)
        else:
            pairs = [p for p in nearest_pairs(front, end) if offset or p.front < p.end]
        if self.ends == "inner":
            pairs = [p for p in pairs if p.front < front - 1 and p.end > 0]
        return numbered(pairs, self.private)
