"""What a pass does to a layer, in terms that other libraries know too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LowRankUpdate:
    """`y = W x + b + scale * up @ down @ x`.

    Attributes:
        down: the name of `down` [rank, in_features] among the tensors of a site's delta.
        up: the name of `up` [out_features, rank].
        scale: a fixed factor.
        dropout: of x in training, where that is where it sits.
    """

    down: str
    up: str
    scale: float
    dropout: float = 0.0


@dataclass(frozen=True)
class Rescaling:
    """`y = factor * (W x + b)`, or with `of_input` `y = W (factor * x) + b`.

    Attributes:
        factor: the name of the factor, one number per channel, among the tensors of a site's delta.
        of_input: whether it is x that is multiplied.
    """

    factor: str
    of_input: bool = False
