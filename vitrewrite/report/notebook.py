"""The pictures that notebooks show of plans, rewritten models and captured ones."""

from __future__ import annotations

from typing import Any

from ..anatomy import analyse
from ..emission.captured import Captured
from ..errors import VitrewriteError
from ..rewrite.compilation import Compilation
from ..rewrite.rewritten import Rewritten
from ..tracing.unit import bare
from .picture import picture, picture_of_blocks


def drawn(shown: Any) -> str:
    """SVG of what has blocks; nothing of what has none, since a notebook shows its text too."""
    if isinstance(shown, (Rewritten, Compilation)):
        return picture(shown)
    if not isinstance(shown, Captured):
        return ""
    try:
        anatomy = analyse(bare(shown)[0])
    except VitrewriteError:
        return ""
    return picture_of_blocks(anatomy, type(shown).__name__) if anatomy.blocks else ""
