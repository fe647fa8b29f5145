"""How images are changed at random in training: what settings say, and what stands behind names.

| `augment` | images with one label | digits | label maps |
|---|---|---|---|
| `none` | | | |
| `standard` | crop 0.08, flip 0.5, colour 0.4 | crop 0.6 | zoom 2, flip 0.5, colour 0.4 |
| `deit` | crop 0.08, flip 0.5, rand-m9-mstd0.5-inc1, erase 0.25 | | |

`deit` is Touvron et al., ICML 2021, table 9, without what mixes images. A setting that is given
holds in place of what the name says.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..errors import DataError
from ..language.settings import Settings
from .policies import check_policy

LABELS, SIGNS, MAPS = "images with one label", "signs", "label maps"
_RATIO = 4 / 3
_STANDARD: dict[str, dict[str, Any]] = {
    LABELS: {"crop": 0.08, "flip": 0.5, "colour": 0.4},
    SIGNS: {"crop": 0.6, "ratio": 1.1},
    MAPS: {"zoom": 2.0, "flip": 0.5, "colour": 0.4},
}
_DEIT = {"crop": 0.08, "flip": 0.5, "auto_augment": "rand-m9-mstd0.5-inc1", "erase": 0.25}
_PRESETS = {"none": {}, "standard": _STANDARD, "deit": {LABELS: _DEIT}}
_OF_MAPS = ("zoom",)
_OF_LABELS = ("crop", "auto_augment", "erase")


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for each image; what is None or 0 is not done.

    Attributes:
        crop: least share of the area that a random crop keeps.
        ratio: largest ratio of its sides, before it gets the model's.
        zoom: of images with maps, drawn from 1 / zoom to zoom times the model's size.
        one_class: largest share of a crop that one class may have, as mmseg has it.
        flip: probability of a mirror.
        colour: how much brightness, contrast and saturation change at most.
        distort: photometric distortion as of SSD, hue and order of channels included.
        auto_augment: a policy as timm calls it.
        erase: probability that a rectangle is replaced by noise.
    """

    crop: float | None = None
    ratio: float = _RATIO
    zoom: float | None = None
    one_class: float = 0.75
    flip: float = 0.0
    colour: float = 0.0
    distort: bool = False
    auto_augment: str | None = None
    erase: float = 0.0

    @classmethod
    def of(cls, settings: Settings, kind: str) -> Augmentation:
        """What settings ask for.

        Args:
            settings: of a run.
            kind: of images: `LABELS`, `SIGNS` or `MAPS`.

        Raises:
            DataError: VR755 for what such images cannot have, or a policy that timm does not know.
        """
        presets: dict[str, dict[str, Any]] = _PRESETS[settings.augment]
        if settings.augment != "none" and kind not in presets:
            raise _impossible(f"augment = {settings.augment}", kind, "take 'standard'")
        given = {f.name: getattr(settings, f.name, None) for f in dataclasses.fields(cls)}
        given = {name: value for name, value in given.items() if value is not None}
        for name in _OF_LABELS if kind == MAPS else _OF_MAPS:
            if name in given:
                raise _impossible(f"{name} = {given[name]}", kind, "leave it out")
        if policy := given.get("auto_augment"):
            check_policy(policy)
        return cls(**{**presets.get(kind, {}), **given})

    @property
    def random(self) -> bool:
        """Whether anything is drawn."""
        drawn = (self.crop, self.zoom, self.flip, self.colour, self.auto_augment, self.erase)
        return self.distort or any(drawn)


def _impossible(what: str, kind: str, suggestion: str) -> DataError:
    return DataError("VR755", f"{what} is not for {kind}", suggestion=suggestion)
