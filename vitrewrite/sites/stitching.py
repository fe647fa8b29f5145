"""Verbs of several models at once: layers between them, and paths through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..anatomy.bases import Anchors
from ..anatomy.sites import Anatomy
from ..editing.editor import Insertion
from ..editing.stitching import Stitches, WantedWay
from ..errors import RewriteError
from ..text import listing
from ..tracing.paths import STITCHES
from .base import BoundSite


@dataclass(frozen=True)
class Anchor:
    """One of the models.

    Attributes:
        name: of the base.
        dims: channels of what each block yields.
        stages: the stage that each block is in.
    """

    name: str
    dims: tuple[int, ...]
    stages: tuple[int, ...]
    _anatomy: Anatomy

    @property
    def depth(self) -> int:
        """How many blocks it has."""
        return len(self.dims)

    @property
    def classes(self) -> int | None:
        """How many classes its head tells apart, if it has one."""
        return self._anatomy.head[0].out_features if self._anatomy.head else None

    @property
    def is_map(self) -> bool:
        """Whether its stream is a map with the channels in front: [batch, channels, h, w]."""
        return self._anatomy.stream.layout == "nchw"

    def positions(self, block: int) -> tuple[str, str, str]:
        """What has to be the same where models meet, in words: layout, prefix and positions."""
        stream = self._anatomy.stream
        tokens = self._anatomy.blocks[block].tokens
        grid = "no grid" if stream.grid is None else f"{stream.grid[0]}x{stream.grid[1]} patches"
        count = f"{grid} at the first block" if tokens is None else f"{tokens} tokens"
        return stream.layout, f"{stream.prefix_tokens} prefix tokens", count


@dataclass(frozen=True, eq=False)
class BasesSite(BoundSite):
    """The models that a spec stitches."""

    site: Anchors

    @property
    def role(self) -> str:
        """The site in words."""
        return self.site.role

    @property
    def path(self) -> str:
        """The tree that holds them."""
        return ""

    @property
    def anchors(self) -> tuple[Anchor, ...]:
        """The models in the order of the clause."""
        return tuple(
            Anchor(
                name, tuple(b.dim for b in each.blocks), tuple(b.stage for b in each.blocks), each
            )
            for name, each in self.context.bases.items()
        )

    def expect_alike(self, front: Anchor, end: Anchor) -> None:
        """Refuses two models between which no token could go over as it is.

        Raises:
            RewriteError: VR508.
        """
        if not front.depth or not end.depth:
            name = front.name if not front.depth else end.name
            raise self._apart(f"'{name}' has no blocks")
        for one, other in zip(front.positions(0), end.positions(0), strict=True):
            if one != other:
                raise self._apart(f"'{front.name}' has {one}, and '{end.name}' {other}")
        if front.classes != end.classes:
            told = f"'{front.name}' tells {front.classes} classes apart"
            raise self._apart(f"{told}, and '{end.name}' {end.classes}")

    def _apart(self, why: str) -> RewriteError:
        names = listing(self.site.names)
        return self.clause.error(
            "VR508",
            f"{self.pass_name} cannot stitch {names}: {why}",
            suggestion="take models of one family, image size and number of classes",
        )

    def wrong(self, option: str, message: str) -> RewriteError:
        """An error about an option that makes no sense for these models."""
        return self.clause.error("VR511", f"{self.pass_name}: {message}", option)

    def layer(self, module: nn.Module) -> int:
        """Keeps a layer that paths go through.

        Returns:
            Its number among all of the tree.
        """
        self._check(module, ())
        root = self.editor.root
        if STITCHES not in root._modules:
            root.add_module(STITCHES, nn.ModuleList())
        number = len(root.get_submodule(STITCHES)._modules)
        known = {n: b for n, b in module.named_buffers() if not b.is_meta}
        path = self.editor.adopt("", STITCHES, str(number), module, self.like)[1]
        self.editor.insertions.append(
            Insertion(
                self.pass_name,
                self.clause.number,
                path,
                "",
                module,
                self,
                (path,),
                path,
                buffers=known,
            )
        )
        self.editor.by_loss.append(path)  # no forward of the models calls it
        return number

    def stitch(self, front: Anchor, after: int, layer: int, end: Anchor, before: int) -> None:
        """One more path: blocks of the front up to one, a layer, blocks of the end from one on.

        Args:
            front: whose first blocks run.
            after: the last of them that runs.
            layer: the number of a layer.
            end: whose last blocks run.
            before: the first of them; `end.depth` where none does.
        """
        self._wanted.append(WantedWay(front.name, after, layer, end.name, before))

    def chain(self, first: int, second: int) -> None:
        """One more path through three models: that of one path, and of another that goes on.

        Args:
            first: the number of a path to a second model.
            second: of one from that to a third, which leaves it behind where the first enters it.
        """
        one, two = self._wanted[first], self._wanted[second]
        assert one.layer is not None
        between = one.layer, one.end, one.before, two.after
        self._wanted.append(
            WantedWay(one.front, one.after, two.layer, two.end, two.before, between)
        )

    def without_norms(self) -> None:
        """Paths through several models leave out the final norm of the one they end in."""
        self._stitches.final_norm = False

    def alone(self, anchor: Anchor) -> None:
        """One more path: a model by itself."""
        last = anchor.depth
        self._wanted.append(WantedWay(anchor.name, last - 1, None, anchor.name, last))

    def calibrate(self, samples: int) -> None:
        """Layers are solved by least squares where there are images: on so many of them.

        A layer is linear in each token, by its `weight` [outputs, inputs, ...] and `bias`.
        """
        self._stitches.samples = samples

    @property
    def count(self) -> int:
        """How many paths there are so far: the number of the next one."""
        return len(self._wanted)

    @property
    def _wanted(self) -> list[WantedWay]:
        return self._stitches.wanted

    @property
    def _stitches(self) -> Stitches:
        if self.editor.stitches is None:
            self.editor.stitches = Stitches(self.clause)
        return self.editor.stitches

    @property
    def like(self) -> torch.Tensor:
        """A tensor of the models."""
        return self._near

    @classmethod
    def bind(cls, context: object, sites: Sequence[Anchors]) -> list[BasesSite]:
        """The models as one."""
        return [cls(context, site) for site in sites]  # type: ignore[arg-type]

    def refuse_twice(self) -> None:
        """There is one such clause in a spec."""
