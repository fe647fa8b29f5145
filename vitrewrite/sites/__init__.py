"""Site verbs: what a pass may do where its clause attaches."""

from ..editing.value import Value
from .affine import AffineSite
from .attention import AttentionSite
from .base import BoundSite
from .block import BlockSite
from .branch import BranchSite
from .channels import ConvSite, NormSite
from .context import Context
from .decoder import DecoderSite
from .entries import EntriesSite
from .gridded import Grid
from .head import HeadSite
from .layer import LayerSite
from .level import LevelSite
from .linear import LinearSite
from .mlp import MlpSite
from .point import Point
from .sizes import finish, settle
from .stitching import Anchor, BasesSite

__all__ = [
    "AffineSite",
    "Anchor",
    "AttentionSite",
    "BasesSite",
    "BlockSite",
    "BoundSite",
    "BranchSite",
    "Context",
    "ConvSite",
    "DecoderSite",
    "EntriesSite",
    "Grid",
    "HeadSite",
    "LayerSite",
    "LevelSite",
    "LinearSite",
    "MlpSite",
    "NormSite",
    "Point",
    "Value",
    "finish",
    "settle",
]
