"""The feed-forward part of a block, as a pass gets it."""

from __future__ import annotations

from dataclasses import dataclass

from ..anatomy.sites import Linear, Mlp
from .base import BoundSite
from .linear import LinearSite


@dataclass(frozen=True, eq=False)
class MlpSite(BoundSite):
    """A feed-forward part, fc2(act(fc1(x))), or a gated one."""

    mlp: Mlp

    @property
    def role(self) -> str:
        """The site in words."""
        return self.mlp.role

    @property
    def path(self) -> str:
        """The module that holds its last layer."""
        return self.fc2.path

    @property
    def dim(self) -> int:
        """Channels of what it yields."""
        return self._layer(self.mlp.fc2).out_features

    @property
    def hidden(self) -> int:
        """Hidden units."""
        return self._layer(self.mlp.fc1).out_features

    @property
    def fc1(self) -> LinearSite:
        """Its first layer."""
        return LinearSite(self.context, (self._layer(self.mlp.fc1),))

    @property
    def fc2(self) -> LinearSite:
        """Its last layer."""
        return LinearSite(self.context, (self._layer(self.mlp.fc2),))

    def _layer(self, found: Linear | None) -> Linear:
        if found is None:
            raise self.unfit("it lacks one of its two layers")
        return found
