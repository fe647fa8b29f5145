"""What a model is called with, and the variations of it that a trace runs under."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import CaptureError, a_or_an

# Unlike each other and unlike any size in a model, so that a batch that got built in shows.
BATCHES = (5, 7)
SCALES = (2, 3)  # of height and width, for the witness of the image size


def example_input(model: nn.Module) -> torch.Tensor:
    """An input of the size that the model says it is for.

    Raises:
        CaptureError: if it does not say.
    """
    size = image_size(model)
    if size is None or min(size) < 1:
        raise CaptureError(
            "VR601",
            f"{a_or_an(type(model).__name__)} does not say what its input is",
            suggestion="pass example=, a tensor such as torch.zeros(1, 3, 224, 224)",
            shell="let the function that builds it say so: model.img_size = (224, 224)",
        )
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return torch.empty(1, *size, dtype=dtype, device="meta")


def image_size(model: nn.Module) -> tuple[int, int, int] | None:
    """Channels, height and width from timm's or Hugging Face's own records."""
    config: Any = getattr(model, "config", None)
    for each in (config, getattr(config, "backbone_config", None)):
        side = getattr(each, "image_size", None)
        sides = (side, side) if isinstance(side, int) else side
        if isinstance(sides, (tuple, list)) and len(sides) == 2:
            return int(getattr(each, "num_channels", 3)), *map(int, sides)  # type: ignore[return-value]
    size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    embed = getattr(model, "patch_embed", None)
    image = getattr(embed, "img_size", None) or getattr(model, "img_size", None)
    channels = getattr(model, "in_chans", None) or (size[0] if size else 3)
    if isinstance(image, (tuple, list)) and len(image) == 2:
        return int(channels), *map(int, image)  # type: ignore[return-value]
    return tuple(size) if size else None


def as_arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments from a tensor, a tuple or a dict."""
    if isinstance(example, dict):
        return (), dict(example)
    return (tuple(example) if isinstance(example, (tuple, list)) else (example,)), {}


def batch_of(example: Any) -> int:
    """The batch size of an example: the first length of its first tensor."""
    args, kwargs = as_arguments(example)
    tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor) and v.dim()]
    return int(tensors[0].shape[0]) if tensors else 1


def variant(tensor: torch.Tensor, batch: int, which: int | None) -> torch.Tensor:
    """A meta tensor like `tensor`: the primary one (`which` None) or that of a witness."""
    shape = list(tensor.shape)
    if shape and shape[0] == batch:
        shape[0] = BATCHES[which == 0]
    if which == 1:
        if len(shape) >= 4:
            shape[-2:] = [shape[-2] * SCALES[0], shape[-1] * SCALES[1]]
        elif len(shape) == 3:
            shape[1] *= SCALES[0]
    return torch.empty(shape, dtype=tensor.dtype, device="meta")
