"""Site verbs: what a pass may do where its clause attaches."""

from ..editing.value import Value
from .attention import AttentionSite
from .base import BoundSite
from .block import BlockSite, Point
from .context import Context
from .decoder import DecoderSite
from .entries import EntriesSite
from .layer import LayerSite
from .level import LevelSite
from .linear import LinearSite
from .sizes import settle

__all__ = [
    "AttentionSite",
    "BlockSite",
    "BoundSite",
    "Context",
    "DecoderSite",
    "EntriesSite",
    "LayerSite",
    "LevelSite",
    "LinearSite",
    "Point",
    "Value",
    "settle",
]
