"""How multiply-accumulates are counted: papers do not agree on what belongs to them.

A claim says which convention it is made under: `require macs(convention=norms) within 0.1% of
17.58G`. This file imports no torch: specs are checked without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PLAIN: Mapping[str, float] = {"convolved": 1, "linear": 1, "products": 1}


@dataclass(frozen=True)
class Convention:
    """A way to count.

    Attributes:
        weights: what one element of each kind counts; kinds are those of `editing.costs.Costs`.
        about: what is counted, and who counts so.
    """

    weights: Mapping[str, float]
    about: str


CONVENTIONS: Mapping[str, Convention] = {
    "plain": Convention(PLAIN, "convolutions, linear layers, attention's two products"),
    "norms": Convention(
        {**PLAIN, "normalised": 5},
        "plain, and 5 per element of layer and group norms, as fvcore's counter has it",
    ),
    "linear": Convention(
        {"convolved": 1, "linear": 1}, "convolutions and linear layers: no products of attention"
    ),
    "linear_norms": Convention(
        {"convolved": 1, "linear": 1, "normalised": 1},
        "linear, and 1 per element of a norm, as counters by modules have it",
    ),
    "patches": Convention(
        {**PLAIN, "prefixed": -1, "normalised_in_blocks": 1},
        "plain, MLPs at the patches alone, and 1 per element of the norms of blocks, as cost "
        "models of a search look them up: the class token is counted in attention",
    ),
    "maps": Convention(
        {**PLAIN, "mapped": 1}, "plain, and classes times masks at the size of the image"
    ),
    "segmentation": Convention(
        {
            **PLAIN,
            "mapped": 1,
            "normalised": 5,
            "batch_normalised": 2,
            "sampled": 4,
            "resized": 1,
        },
        "maps, norms, sampling and resizing, as fvcore's counter has it",
    ),
}
