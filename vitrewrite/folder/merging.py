"""Weighted sums of deltas of one spec over one base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..disk import LOCK, replacing_file
from ..emission.literals import one_line
from ..errors import FileError
from ..rewrite.rewritten import Rewritten
from ..storage.tensors import Content, check_finite, write_tensors
from .delta import check_shapes, leave_folders, put, read_file
from .identity import BASE
from .lock import DELTA, Folder
from .reading import NONE, Trust, rewritten_folder


def merged(paths: Sequence[Path], weights: Sequence[float]) -> Content:
    """The weighted sum of deltas, tensor by tensor.

    It is a sum of tensors, not of what they do to a model: of two low-rank updates it is (sum of
    up) (sum of down). Whole numbers, such as positions, have to be the same in all.

    Args:
        paths: of files, or of folders that have one.
        weights: of each.

    Raises:
        FileError: VR777 for deltas of other specs, bases or positions, VR716 if a sum is not
            finite, and as `read_file` for what cannot be read.
    """
    found = [_read(path) for path in paths]
    first = found[0]
    for path, other in zip(paths[1:], found[1:], strict=True):
        _check_alike(paths[0], first, path, other)
    tensors = {k: _sum([c.tensors[k] for c in found], weights, k) for k in first.tensors}
    check_finite(tensors, "the merged delta")
    pairs = zip(weights, paths, strict=True)
    story = ", ".join(f"{weight:g} {path.name}" for weight, path in pairs)
    metadata = {k: v for k, v in first.metadata.items() if k != "digest"}
    return Content(tensors, {**metadata, "merged_from": one_line(story)}, intact=True)


def merged_folder(path: Path, delta: Content, trust: Trust = NONE) -> Rewritten:
    """The model of a folder with a merged delta.

    Raises:
        FileError: as `rewritten_folder`.
    """
    rewritten = rewritten_folder(path, trust)
    put(rewritten, delta.tensors)
    return rewritten


def save_merged(delta: Content, out: Path) -> None:
    """Writes a merged delta to a file.

    Raises:
        FileError: VR702 if it cannot be written, VR717 if it is one of the files of a folder.
    """
    leave_folders(out)
    with replacing_file(out) as temporary:
        write_tensors(temporary, delta.tensors, delta.metadata, seal=True)


def _read(path: Path) -> Content:
    if (path / LOCK).is_file():
        folder = Folder.open(path)
        return read_file(path / DELTA, folder.digest(DELTA))
    return read_file(path)


def _check_alike(one: Path, first: Content, two: Path, other: Content) -> None:
    for key, what in (("spec_hash", "specs"), (BASE, "base weights")):
        if first.metadata[key] != other.metadata[key]:
            names = [
                f"{p}: {c.metadata['spec']} on {c.metadata['model']}"
                for p, c in ((one, first), (two, other))
            ]
            raise FileError(
                "VR777",
                f"'{one}' and '{two}' are of different {what}",
                notes=[*names, "a sum is of deltas of one spec over one base"],
            )
    check_shapes(first.tensors, other.tensors, two)


def _sum(tensors: Sequence[torch.Tensor], weights: Sequence[float], name: str) -> torch.Tensor:
    first = tensors[0]
    if first.is_floating_point():
        pairs = zip(tensors, weights, strict=True)
        total = torch.stack([tensor.double() * weight for tensor, weight in pairs]).sum(0)
        return total.to(first.dtype)
    if any(not torch.equal(first, tensor) for tensor in tensors[1:]):
        raise FileError(
            "VR777",
            f"'{name}' is of whole numbers, which are not the same in all deltas",
            notes=["single entries that were chosen otherwise cannot be added up"],
        )
    return first
