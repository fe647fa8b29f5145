"""Folders of PEFT: an adapter's settings and tensors, written and read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ..disk import LOCK, MADE_BY, replacing
from ..emission.literals import one_line
from ..errors import FileError
from ..interchange import PeftAdapter, read, said
from ..rewrite.rewritten import Rewritten
from ..storage.hashing import digest_of, parsed, read_bytes, sealed
from ..storage.tensors import check_finite, read_tensors, write_tensors
from ..text import first_line
from .identity import BASE, fingerprint

SETTINGS, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def is_adapter(path: Path) -> bool:
    """Whether a path is a folder of PEFT."""
    return (path / SETTINGS).is_file()


def save_adapter(rewritten: Rewritten, out: Path) -> PeftAdapter:
    """Writes a rewritten model as a folder that the library peft loads, all or nothing.

    Returns:
        What was written.

    Raises:
        FileError: VR770 for what PEFT cannot say, VR716 if a tensor is not finite, VR701, VR702 if
            the folder cannot be written.
    """
    adapter = said(rewritten)
    check_finite(adapter.tensors, "the delta")
    metadata = {
        "format": "pt", "spec": one_line(rewritten.spec.name), BASE: fingerprint(rewritten),
    }  # fmt: skip
    text = (json.dumps(adapter.settings, indent=2) + "\n").encode()
    with replacing(out) as folder:
        (folder / SETTINGS).write_bytes(text)
        digest = write_tensors(folder / TENSORS, adapter.tensors, metadata)
        lock = {"made_by": MADE_BY, "files": {SETTINGS: digest_of(text), TENSORS: digest}}
        (folder / LOCK).write_text(sealed(lock), encoding="utf-8")
    return adapter


def read_adapter(rewritten: Rewritten, path: Path) -> dict[str, torch.Tensor]:
    """The delta that an adapter is.

    Raises:
        FileError: VR771 if it cannot be read, VR716 if a tensor is not finite, VR720 if it says
            that it was made on another base, VR770 to VR772 as `interchange.read`.
    """
    settings = _settings(path / SETTINGS)
    found = read_tensors(path / TENSORS, code="VR771", what="the adapter")
    check_finite(found.tensors, path / TENSORS)
    try:
        delta = read(rewritten, settings, found.tensors)
    except ValueError as error:
        raise FileError("VR771", f"cannot read '{path / SETTINGS}': {error}") from error
    if found.metadata.get(BASE) not in (None, fingerprint(rewritten)):
        raise FileError(
            "VR720",
            f"the adapter '{path}' was made on other base weights",
            suggestion="apply the spec to the weights that it was trained on",
        )
    return delta


def _settings(path: Path) -> dict[str, Any]:
    try:
        found = parsed(read_bytes(path))
        if not isinstance(found, dict):
            raise ValueError("it is no object")
        _check(found)
        return found
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
    except ValueError as error:
        reason = first_line(error)
    raise FileError("VR771", f"cannot read '{path}': {reason}")


def _check(settings: dict[str, Any]) -> None:
    for name in ("rank_pattern", "alpha_pattern"):
        if not isinstance(settings.get(name) or {}, dict):
            raise ValueError(f"its {name} is no object")
