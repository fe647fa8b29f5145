"""Transforms as the model's own configuration wants them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..errors import DataError
from ..tracing.about import about

if TYPE_CHECKING:
    from PIL.Image import Image

Transform = Callable[["Image"], torch.Tensor]
_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Preprocessing:
    """What a model takes.

    Attributes:
        size: channels, height, width.
        config: timm's own settings (`mean`, `std`, `interpolation`, `crop_pct`, `crop_mode`).
    """

    size: tuple[int, int, int]
    config: dict[str, Any]

    @classmethod
    def of(cls, root: torch.nn.Module) -> Preprocessing:
        """That of a captured model: the size it was captured for, the rest from its records.

        Raises:
            DataError: VR744 if its input is no image of one or three channels.
        """
        from ..tracing.inputs import example_of_one

        shape = example_of_one(root)[0].shape
        if len(shape) != 4 or shape[1] not in _MODES:
            raise DataError(
                "VR744",
                f"the model takes {tuple(shape)}, which is no batch of images",
                notes=["valid: (batch, 1 or 3 channels, height, width)"],
            )
        channels, height, width = map(int, shape[1:])
        records = dict(about(root).pretrained_cfg or {})
        config = _timm().resolve_data_config({"input_size": (channels, height, width)}, records)
        del config["input_size"]
        for key in ("mean", "std"):
            values = tuple(config[key])
            if len(values) != channels:
                config[key] = (sum(values) / len(values),) * channels
        return cls((channels, height, width), config)

    @property
    def mode(self) -> str:
        """Pillow's name for images of that many channels."""
        return _MODES[self.size[0]]

    def transform(self, *, whole: bool) -> Transform:
        """The transform of evaluation: resize and crop, normalise.

        Args:
            whole: resize to the size itself, so that nothing is cropped.
        """
        return self._create(is_training=False, **({"crop_pct": 1.0} if whole else {}))

    def augmentation(self, *, whole: bool) -> Transform:
        """A random crop; a random flip and colours too, unless the images are symbols."""
        if whole:
            plain = {"hflip": 0.0, "color_jitter": 0.0, "scale": (0.6, 1.0), "ratio": (0.9, 1.1)}
            return self._create(is_training=True, **plain)
        return self._create(is_training=True)

    def _create(self, **options: Any) -> Transform:
        config = {k: v for k, v in self.config.items() if k != "crop_mode"}
        made: Transform = _timm().create_transform(self.size, **{**config, **options})
        return made


def _timm() -> Any:
    """timm's functions for data; it has no types."""
    import timm.data

    return timm.data
