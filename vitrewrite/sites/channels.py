"""Verbs of norms and convolutions: what stands behind them, and what their weights can take."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..anatomy.sites import ChannelLayer, Conv, Norm, Place
from . import folding
from .affine import AffineSite


@dataclass(frozen=True, eq=False)
class ChannelSite(AffineSite):
    """A layer that has a number, or a row of its weight, for each channel that it yields."""

    layer: ChannelLayer

    @property
    def role(self) -> str:
        """The site in words."""
        return self.layer.role

    @property
    def path(self) -> str:
        """The module that holds the layer; the layer itself where its own forward does more."""
        inside = self.layer.call.unit == self.layer.path
        return self.layer.path if inside else super().path

    @property
    def out_features(self) -> int:
        """Channels that it yields."""
        return self.layer.width

    @property
    def ranges(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """All of its channels."""
        return (((0, self.layer.width),),)

    @property
    def axis(self) -> int:
        """The axis of the channels in what it yields: -1, or 1 for maps [batch, channels, ...]."""
        return self.layer.axis

    @property
    def _layer(self) -> str:
        return self.layer.path

    @property
    def _calls(self) -> list[Place]:
        return self.editor.calls(self.layer.calls)


@dataclass(frozen=True, eq=False)
class NormSite(ChannelSite):
    """A norm with or without a scale of its own."""

    layer: Norm

    def _applied(self) -> nn.Module:
        return folding.Affine(*self._numbers)


@dataclass(frozen=True, eq=False)
class ConvSite(ChannelSite):
    """A convolution, such as the one of a patch embedding."""

    layer: Conv

    def _applied(self) -> nn.Module:
        return folding.matrix(*self._numbers)
