"""All that a pass imports: what it declares, the sites it gets, and what it gives to training."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .catalog.declare import Pass, Rung, option
from .catalog.updates import LowRankUpdate, Rescaling
from .editing.origins import OwnLayers
from .layers.folded import folded
from .layers.gating import StructureGates
from .layers.masking import MaskedSoftmax, TokenScores
from .layers.picking import Picking
from .layers.quantised import Quantised
from .rewrite.choosing import FoundOptions
from .rewrite.deciding import decided
from .rewrite.rewritten import Rewritten
from .sites import (
    AffineSite,
    Anchor,
    AttentionSite,
    BasesSite,
    BlockSite,
    BranchSite,
    ConvSite,
    DecoderSite,
    EntriesSite,
    Grid,
    HeadSite,
    LayerSite,
    LevelSite,
    LinearSite,
    MlpSite,
    NormSite,
    Point,
    Value,
)
from .sites.freezing import frozen

if TYPE_CHECKING:
    from .tuning import (
        FallingKeep,
        KeptTokens,
        ParameterGroup,
        Phase,
        Procedure,
        Run,
        Watched,
        activity,
        features,
        silhouette,
    )

__all__ = [
    "AffineSite",
    "Anchor",
    "AttentionSite",
    "BasesSite",
    "BlockSite",
    "BranchSite",
    "ConvSite",
    "DecoderSite",
    "EntriesSite",
    "FallingKeep",
    "FoundOptions",
    "Grid",
    "HeadSite",
    "KeptTokens",
    "LayerSite",
    "LevelSite",
    "LinearSite",
    "LowRankUpdate",
    "MaskedSoftmax",
    "MlpSite",
    "NormSite",
    "OwnLayers",
    "ParameterGroup",
    "Pass",
    "Phase",
    "Picking",
    "Point",
    "Procedure",
    "Quantised",
    "Rescaling",
    "Rewritten",
    "Run",
    "Rung",
    "StructureGates",
    "TokenScores",
    "Value",
    "Watched",
    "activity",
    "decided",
    "features",
    "folded",
    "frozen",
    "option",
    "silhouette",
]
_TRAINING = (
    *("FallingKeep", "KeptTokens", "ParameterGroup", "Phase", "Procedure", "Run", "Watched"),
    *("activity", "features", "silhouette"),
)


def __getattr__(name: str) -> Any:
    """What is for training alone is imported with the first pass that has a procedure."""
    if name not in _TRAINING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(".tuning", __package__), name)
