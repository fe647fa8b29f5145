"""Tensors on disk: equal tensors and metadata give equal bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def save_tensors(
    tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file whose bytes depend on what is in it alone.

    The library sorts tensors by size of element and name, and metadata not at all: their order is
    another one each time. So the header, padded to the same length, is written again.

    Args:
        tensors: by name, each contiguous and with storage of its own.
        path: the file.
        metadata: by name.
    """
    from safetensors.torch import save_file

    save_file(dict(tensors), path, dict(metadata) if metadata else None)
    if metadata:
        with path.open("r+b") as file:
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(length))
            notes = dict(sorted(header.pop("__metadata__").items()))
            ordered = {"__metadata__": notes, **header}
            text = json.dumps(ordered, ensure_ascii=False, separators=(",", ":")).encode()
            assert len(text) <= length, "it is the same header"
            file.seek(8)
            file.write(text.ljust(length))
