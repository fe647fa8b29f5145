"""Transforms as the model's own configuration wants them, and a recipe: those of timm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..errors import DataError
from ..language.settings import Settings
from ..tracing.about import about
from .augmentation import Augmentation
from .policies import mend

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
        settings: of the run, which say what is random.
    """

    size: tuple[int, int, int]
    config: dict[str, Any]
    settings: Settings = field(default_factory=Settings)

    @classmethod
    def of(cls, root: torch.nn.Module, settings: Settings | None = None) -> Preprocessing:
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
        return cls((channels, height, width), config, settings or Settings())

    @property
    def mode(self) -> str:
        """Pillow's name for images of that many channels."""
        return _MODES[self.size[0]]

    @property
    def record(self) -> dict[str, Any]:
        """What a report says of it."""
        return {"size": list(self.size), **self.config}

    def normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        """Values (..., C, H, W) from 0 to 255 as the model takes them."""
        mean, std = (torch.tensor(self.config[k]).view(-1, 1, 1) for k in ("mean", "std"))
        return pixels.float().div_(255).sub_(mean).div_(std)

    def plain(self, *, whole: bool) -> Transform:
        """The transform of evaluation, to 8 bits (C, H, W): resize and crop.

        Args:
            whole: resize to the size itself, so that nothing is cropped.
        """
        made: Transform = self._create(False, **({"crop_pct": 1.0} if whole else {}))
        return made

    def random(self, chosen: Augmentation, *, whole: bool) -> Transform:
        """The transform of training, to 8 bits too; without a random crop it begins as `plain`."""
        made = self._create(
            True,
            scale=(chosen.crop or 1.0, 1.0),
            ratio=(1 / chosen.ratio, chosen.ratio),
            hflip=chosen.flip,
            color_jitter=chosen.colour or None,
            auto_augment=chosen.auto_augment,
        )
        mend(made.transforms)
        if chosen.crop is None:
            geometry: Any = self.plain(whole=whole)
            made.transforms[:1] = geometry.transforms[:-1]
        if chosen.distort:
            from torchvision.transforms import v2

            made.transforms.insert(-1, v2.RandomPhotometricDistort())
        transform: Transform = made
        return transform

    def _create(self, training: bool, **options: Any) -> Any:
        options = {**self.config, **options, "normalize": False}
        return _timm().create_transform(self.size, is_training=training, **options)


def erasing(probability: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """timm's random erasing of a normalised image, in place, by noise as in DeiT."""
    from timm.data import random_erasing

    library: Any = random_erasing
    made: Callable[[torch.Tensor], torch.Tensor] = library.RandomErasing(
        probability, mode="pixel", device="cpu"
    )
    return made


def _timm() -> Any:
    """timm's functions for data; it has no types."""
    import timm.data

    return timm.data
