"""What a recipe says about the images that its model takes: it goes into timm's record of them.

The record is what a written folder keeps, so a model that was tuned with `inputs = unit` is later
given such images by everything that reads the folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..errors import DataError, Span
from ..language.settings import INPUTS
from ..text import did_you_mean, shown
from ..tracing.about import about, tell
from .image_processors import BY_DEFAULT


def state(root: nn.Module, values: Mapping[str, Any], span: Span | None = None) -> None:
    """Has a captured model know how a recipe gives it images.

    Args:
        root: of a captured model.
        values: settings of `tune`; `inputs` and `resize` are read.
        span: where `inputs` stands.

    Raises:
        DataError: VR755 if `inputs` is neither a name nor MEAN/STD.
    """
    changes = normalisation(str(values.get("inputs", "model")), span)
    known = about(root).pretrained_cfg or {}
    if changes and known.get(BY_DEFAULT):
        changes[BY_DEFAULT] = False
    if values.get("resize") == "whole":
        changes |= {"crop_mode": "squash", "crop_pct": 1.0}
    if changes:
        tell(root, pretrained_cfg={**known, **changes})


def normalisation(text: str, span: Span | None = None) -> dict[str, Any]:
    """`mean` and `std` by what `inputs` says, of images from 0 to 1; nothing for the model's own.

    Raises:
        DataError: VR755.
    """
    from timm.data import constants

    named: dict[str, tuple[Any, Any]] = {
        "unit": ((0.0,) * 3, (1.0,) * 3),
        "imagenet": (constants.IMAGENET_DEFAULT_MEAN, constants.IMAGENET_DEFAULT_STD),
        "inception": (constants.IMAGENET_INCEPTION_MEAN, constants.IMAGENET_INCEPTION_STD),
        "clip": (constants.OPENAI_CLIP_MEAN, constants.OPENAI_CLIP_STD),
    }
    if text == "model":
        return {}
    mean, std = named[text] if text in named else _written(text, span)
    return {"mean": tuple(mean), "std": tuple(std)}


def _written(text: str, span: Span | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """MEAN/STD, each a number or one for each channel."""
    try:
        mean, std = (tuple(float(v) for v in part.split(",")) for part in text.split("/"))
        width = max(len(mean), len(std))
        if width in (1, 3) and {len(mean), len(std)} <= {1, width} and min(std) > 0:
            # One number holds for all channels; three of them also tell it from grey images.
            return (mean * 3)[: max(width, 3)], (std * 3)[: max(width, 3)]
    except ValueError:
        pass
    raise DataError(
        "VR755",
        f"inputs {shown(text)} is neither a name nor MEAN/STD",
        span=span,
        notes=[f"valid: {', '.join(INPUTS)}, '0.5/0.5', '0.485,0.456,0.406/0.229,0.224,0.225'"],
        suggestion=did_you_mean(text, INPUTS),
    )
