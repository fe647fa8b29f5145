"""Site verbs: what a pass may do where its clause attaches."""

from .attention import AttentionSite
from .base import BoundSite, Context
from .block import BlockSite, Point
from .entries import EntriesSite
from .linear import LinearSite
from .value import Value

__all__ = [
    "AttentionSite",
    "BlockSite",
    "BoundSite",
    "Context",
    "EntriesSite",
    "LinearSite",
    "Point",
    "Value",
]
