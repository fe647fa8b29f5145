"""Verbs of norms and convolutions: what stands behind them, and what their weights can take."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..anatomy.sites import ChannelLayer, Conv, Norm, Place
from . import folding
from .affine import AffineSite
from .feeding import FedSite


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

    @property
    def eps(self) -> float:
        """What it adds to a variance."""
        return float(getattr(self.editor.root.get_submodule(self.layer.path), "eps", 1e-6))

    def _applied(self) -> nn.Module:
        return folding.Affine(*self._numbers)


@dataclass(frozen=True, eq=False)
class ConvSite(ChannelSite, FedSite):
    """A convolution, such as the one of a patch embedding."""

    layer: Conv

    @property
    def in_features(self) -> int:
        """Channels of what it reads."""
        call = self.editor.node(self._calls[0])
        known = getattr(self._owner, "groups", None)
        given = call.args[6] if len(call.args) > 6 else call.kwargs.get("groups", 1)
        groups = known if isinstance(known, int) else given
        assert isinstance(groups, int)
        return super().in_features * groups

    def _applied(self) -> nn.Module:
        return folding.matrix(*self._numbers)

    def _stays(self) -> str:
        """One of several positions pads them with zeros, so that no shift in front of it folds."""
        shape = self.editor.root.get_parameter(self._weight).shape
        if shape[1:].numel() == shape[1] == self.in_features:
            return super()._stays()
        return "a convolution of several positions reads zeros beyond the edge, which stay zeros"
