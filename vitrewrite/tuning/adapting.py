"""Images of a run as its teacher takes them: of another size, normalised in another way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..data import Preprocessing
from ..tracing.inputs import image_size

Change = Callable[[torch.Tensor], torch.Tensor]


def adapted(teacher: nn.Module, given: Preprocessing) -> tuple[Change, list[str]]:
    """What is done to images before a teacher sees them, and that in words.

    Args:
        teacher: in eval, on its device; timm's records say how its images are normalised, and its
            size is asked for only if it does not take that of the run.
        given: how the images of the run are made.
    """
    changes, told = list[Change](), list[str]()
    own, other = _scaling(given.config, given.size[0]), _scaling(_record(teacher), given.size[0])
    if other and own != other:
        changes.append(_renormalised(own, other))
        told.append(f"the teacher's images are normalised by {_numbers(other)}")
    size = (image_size(teacher) or given.size)[1:]
    if size != given.size[1:] and not _takes(teacher, given.size):
        changes.append(lambda images: _resized(images, size))
        told.append(f"the teacher's images are resized from {_by(given.size[1:])} to {_by(size)}")

    def change(images: torch.Tensor) -> torch.Tensor:
        for each in changes:
            images = each(images)
        return images

    return change, told


def _record(teacher: nn.Module) -> dict[str, Any]:
    """What timm's record of a teacher says of its images; nothing if there is none."""
    if not getattr(teacher, "pretrained_cfg", None):
        return {}
    import timm.data

    library: Any = timm.data
    return dict(library.resolve_model_data_config(teacher))


def _scaling(config: dict[str, Any], channels: int) -> list[tuple[float, ...]]:
    """Mean and standard deviation for so many channels, as `Preprocessing` has them."""
    found = [tuple(map(float, config[key])) for key in ("mean", "std") if key in config]
    return [v if len(v) == channels else (sum(v) / len(v),) * channels for v in found]


def _takes(teacher: nn.Module, size: tuple[int, ...]) -> bool:
    device = next(teacher.parameters()).device
    try:
        with torch.no_grad():
            teacher(torch.zeros(1, *size, device=device))
    except Exception:  # whatever a model says of a size that it does not take
        return False
    return True


def _renormalised(own: list[tuple[float, ...]], other: list[tuple[float, ...]]) -> Change:
    (mean, std), (new_mean, new_std) = (
        [torch.tensor(values)[:, None, None] for values in pair] for pair in (own, other)
    )
    scale, shift = std / new_std, (mean - new_mean) / new_std
    return lambda images: images * scale.to(images) + shift.to(images)


def _resized(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)


def _by(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))


def _numbers(pair: list[tuple[float, ...]]) -> str:
    return " / ".join(" ".join(f"{value:g}" for value in values) for values in pair)
