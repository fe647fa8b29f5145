"""What the classes of a model are called."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..errors import UNPRINTABLE
from ..models.image_processors import BY_DEFAULT
from ..tracing.about import about, tell

LABEL_NAMES = "label_names"
"""Of timm's records."""
_IMAGENET = 1000


def class_names(root: nn.Module, count: int, *, learnt: bool = False) -> tuple[str, ...]:
    """The names of a captured model's classes, as many as there are; none if nobody says.

    Those that `tune` found in its data, else those of a Hugging Face configuration, else those of
    ImageNet, which timm has, for a head of 1000 classes.

    Args:
        root: of the model.
        count: outputs of its head.
        learnt: whether the head has weights of somebody, so that its classes mean something.
    """
    known = about(root)
    record: Mapping[str, Any] = known.pretrained_cfg or {}
    told: Sequence[str] = record.get(LABEL_NAMES) or ()
    if 0 < len(told) <= count:
        return tuple(named(told, k) for k in range(count))
    configured: Mapping[int, str] = getattr(known.config, "id2label", None) or {}
    names = tuple(str(configured.get(k, f"LABEL_{k}")) for k in range(count))
    if any(name not in (str(k), f"LABEL_{k}") for k, name in enumerate(names)):
        return tuple(f"class {k}" if n == f"LABEL_{k}" else n for k, n in enumerate(names))
    if learnt and count == _IMAGENET == record.get("num_classes"):
        import timm.data

        library: Any = timm.data
        told_by = library.ImageNetInfo("imagenet-1k")
        return tuple(str(told_by.index_to_description(k)) for k in range(count))
    return ()


def named(names: Sequence[str], index: int) -> str:
    """The name of a class, or its number where it has none."""
    return str(names[index]) if index < len(names) else f"class {index}"


def name_classes(
    root: nn.Module, names: Sequence[str], given: Mapping[str, Any] | None = None, *, whole: bool
) -> None:
    """Has a captured model know what it was trained on, for who reads its folder.

    Args:
        root: of the model.
        names: of the classes; empty if the data do not say.
        given: how images were prepared, in the words of timm's records.
        whole: whether images were never cropped.
    """
    lines = (re.sub(r"\s", " ", str(name)) for name in names)
    changes: dict[str, Any] = {LABEL_NAMES: tuple(UNPRINTABLE.sub("?", line) for line in lines)}
    changes |= {**(given or {}), **({"crop_pct": 1.0} if whole else {})}
    before = about(root).pretrained_cfg or {}
    if given and before.get(BY_DEFAULT):  # from now on its weights are made for it
        changes[BY_DEFAULT] = False
    tell(root, pretrained_cfg={**before, **changes})
