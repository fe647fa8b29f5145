"""How images are prepared for models of Hugging Face, in the words of timm's records.

A checkpoint says it in the `preprocessor_config.json` beside it; without, it is what transformers'
own image processor of such a model does.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import FileError
from ..storage.hashing import parsed, read_bytes
from ..text import first_line, shown

FILE = "preprocessor_config.json"
BY_DEFAULT = "by_default"
"""Of a record: that the checkpoint itself says nothing."""
_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_KEYS = (
    *("do_resize", "do_center_crop", "do_normalize", "image_mean", "image_std", "size"),
    *("crop_size", "crop_pct", "resample", "do_rescale", "rescale_factor"),
)


def record_of(kind: str, path: Path | None) -> dict[str, Any]:
    """`mean`, `std`, `interpolation`, `crop_pct` and `crop_mode`; nothing if nobody says.

    Args:
        kind: the `model_type` of the configuration.
        path: the file beside the checkpoint, if there is one.

    Raises:
        FileError: VR578 if the file says nothing that can be used.
    """
    if path is None:
        found = _record(_defaults(kind))
        return {**found, BY_DEFAULT: True} if found else {}
    try:
        values = parsed(read_bytes(path))
        return _record({**_defaults(kind), **values})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise FileError(
            "VR578",
            f"'{path}' does not say how images are prepared: {first_line(error)}",
            suggestion="take the one of the checkpoint, or remove it",
        ) from error


def _record(values: Mapping[str, Any]) -> dict[str, Any]:
    mean, std = values.get("image_mean"), values.get("image_std")
    if values.get("do_normalize") is False:
        mean, std = [0.0] * 3, [1.0] * 3
    if mean is None or std is None:
        return {}
    # timm's records are about values from 0 to 1, and a processor's are about what it rescales to.
    factor = 255 * float(values.get("rescale_factor") or 1 / 255)
    if values.get("do_rescale") is False:
        factor = 255.0
    found = {
        "mean": tuple(float(v) / factor for v in _channels(mean)),
        "std": tuple(float(v) / factor for v in _channels(std)),
        **_geometry(values),
    }
    if not all(map(math.isfinite, (*found["mean"], *found["std"]))) or min(found["std"]) <= 0:
        raise ValueError(f"std is {shown(std)}")
    if (resample := values.get("resample")) is not None:
        found["interpolation"] = _FILTERS[int(resample)]
    return found


def _channels(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value] * 3


def _geometry(values: Mapping[str, Any]) -> dict[str, Any]:
    """How the image gets its size: squashed, or its shorter side resized and the middle taken."""
    size, crop = values.get("size"), values.get("crop_size")
    shorter = size.get("shortest_edge") if isinstance(size, Mapping) else size
    if values.get("crop_pct") is not None and shorter is not None:  # ConvNeXt's
        return {"crop_pct": float(values["crop_pct"]), "crop_mode": "center"}
    if values.get("do_center_crop") and crop is not None:
        inner: Any = crop.get("height") if isinstance(crop, Mapping) else crop
        whole: Any = shorter or (size or {}).get("height") or inner
        mode = "center" if shorter else "squash"
        return {"crop_pct": min(1.0, float(inner) / float(whole)), "crop_mode": mode}
    return {"crop_pct": 1.0, "crop_mode": "squash"}


def _defaults(kind: str) -> dict[str, Any]:
    """What transformers' own processor of a kind of model does; nothing if it has none."""
    try:
        known: Any = importlib.import_module("transformers.models.auto.image_processing_auto")
        entry = known.IMAGE_PROCESSOR_MAPPING_NAMES[kind]
        names = entry.values() if isinstance(entry, Mapping) else entry
        names = (names,) if isinstance(names, str) else [n for n in names if n]
        cls = getattr(importlib.import_module("transformers"), sorted(names)[-1])
    except (ImportError, KeyError, AttributeError, IndexError):
        return {}
    # Newer processors state them on the class, older ones as arguments of the constructor.
    return {k: v for k in _KEYS if (v := getattr(cls, k, None)) is not None}
