"""Folders that were changed on purpose: with a lock file that agrees, or without."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vitrewrite.folder.lock import lock_text
from vitrewrite.folder.usage import Usage
from vitrewrite.folder.writing import json_text
from vitrewrite.rewrite.rewritten import Rewritten
from vitrewrite.storage.hashing import content_digest
from vitrewrite.storage.tensors import read_tensors, write_tensors
from vitrewrite.tracing.about import tell


def reseal(folder: str | Path, **changes: Any) -> None:
    """Makes the lock file agree with what is in the folder; `changes` are entries of it."""
    path = Path(folder, "lock.json")
    lock = {**json.loads(path.read_text()), **changes}
    for name in lock["files"]:
        if (path.parent / name).is_file():
            lock["files"][name] = content_digest((path.parent / name).read_bytes())
    path.write_text(lock_text(lock))


def lock_for(folder: Path) -> None:
    """A lock file for whatever is in a folder."""
    texts = ("spec_name", "spec", "spec_hash", "model", "weights", "base_fingerprint")
    lock: dict[str, Any] = {
        "made_by": "vitrewrite", "lowered": False, **dict.fromkeys(texts, ""), "places": [],
        "model_options": {}, "seed": 0, "allocations": {},
        "files": {p.name: content_digest(p.read_bytes()) for p in folder.iterdir() if p.is_file()},
    }  # fmt: skip
    lock["files"].pop("lock.json", None)
    (folder / "lock.json").write_text(lock_text(lock))


def tell_of_images(again: Rewritten, first: Rewritten) -> None:
    """Has who captured printed source know what `preprocessing.json` beside it says."""
    usage = Usage.of(first)
    if usage is not None:
        found = Usage.from_json(json.loads(json_text(usage.to_json())))
        assert found == usage
        tell(again.base, pretrained_cfg=found.record)


def edit(path: str | Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Changes the tensors of a file, and its digest with them."""
    found = read_tensors(path)
    tensors = {k: v.clone() for k, v in found.tensors.items()}
    change(tensors)
    metadata = {k: v for k, v in found.metadata.items() if k != "digest"}
    write_tensors(Path(path), tensors, metadata, seal="digest" in found.metadata)


def flip(path: Path, bit: int) -> None:
    """Turns one bit over."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
