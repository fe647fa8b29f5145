"""Deltas: what a spec added or trains, as a file that says what it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..anatomy.fingerprint import fingerprint_of
from ..disk import LOCK, replacing_file
from ..emission.literals import one_line
from ..errors import FileError
from ..storage.hashing import changed
from ..storage.tensors import check_finite, read_tensors, write_tensors
from ..version import __version__
from .lock import Folder
from .packed import PLAIN, decoded, encoded, quantised, read_plain

if TYPE_CHECKING:
    from ..rewrite.rewritten import Rewritten

FORMAT = "vitrewrite delta 1"


def fingerprint(rewritten: Rewritten) -> str:
    """Identifies the frozen weights of the original model."""
    return fingerprint_of(rewritten.base.state_dict(), rewritten.result.base_trained)


def save_delta(
    rewritten: Rewritten, path: str | Path, base: str | None = None, *, packed: bool = False
) -> str:
    """Writes what the spec added or trains, with what it belongs to in the metadata.

    Args:
        rewritten: the model.
        path: the file.
        base: the fingerprint of its base, if that is known; it takes a pass over all weights.
        packed: whether matrices of few bits are written as such, see `folder.packed`.

    Returns:
        The hash of the file.

    Raises:
        FileError: VR702 if the file cannot be written, VR716 if a tensor is not finite, VR717 if
            it is one of the files of a folder.
        RewriteError: VR445, VR446, VR448 if there is nothing to pack, or it cannot be.
    """
    _leave_folders(Path(path))
    tensors = encoded(rewritten, bits=packed)
    check_finite(tensors, "the delta")
    metadata = {
        "format": FORMAT,
        "model": rewritten.model_name,
        "spec": rewritten.spec.name,
        "spec_hash": rewritten.spec.hash,
        "base_fingerprint": fingerprint(rewritten) if base is None else base,
        "vitrewrite": __version__,
        "torch": torch.__version__,
    }
    metadata = {key: one_line(value) for key, value in metadata.items()}
    with replacing_file(Path(path)) as temporary:
        return write_tensors(temporary, tensors, metadata, seal=True)


def _leave_folders(path: Path) -> None:
    """A folder is written as a whole: its weights would no longer be what its delta makes."""
    if not (path.parent / LOCK).is_file():
        return
    try:
        files = Folder.open(path.parent).lock["files"]
    except FileError:
        return
    if path.name in files:
        raise FileError(
            "VR717", f"'{path}' belongs to a folder, whose weights would no longer fit",
            suggestion=f"vitrewrite.emit(rewritten, '{path.parent}') writes the whole folder",
        )  # fmt: skip


def load_delta(rewritten: Rewritten, path: str | Path, digest: str | None = None) -> None:
    """Loads a delta into a model that the same spec made from the same base.

    Args:
        rewritten: the model.
        path: the file; of plain bytes if it ends in `.bin`, which do not say what they belong to.
        digest: its hash, if a lock file says so; otherwise it has one of its own.

    Raises:
        FileError: VR711 if it cannot be read, VR715 if it was changed since it was written, VR716
            if a tensor is not finite, VR720 for another base, VR721 for another spec, VR722 for
            missing, unexpected or misshapen tensors. Nothing is changed then.
        RewriteError: VR445 for a quantised matrix of equal numbers, VR447 for plain bytes of
            another size.
    """
    if digest is None and Path(path).suffix == PLAIN:
        tensors = read_plain(rewritten, Path(path))
        check_finite(tensors, path)
        _take(rewritten, *decoded(rewritten, tensors))
        return
    found = read_tensors(path, digest=digest, what="the delta")
    known = {"model", "spec", "spec_hash", "base_fingerprint"} <= found.metadata.keys()
    if found.metadata.get("format") != FORMAT or not known:
        raise FileError("VR711", f"'{path}' is no delta of vitrewrite")
    if not found.intact:
        raise changed(Path(path))
    _check_origin(rewritten, found.metadata, path)
    values, scales = decoded(rewritten, found.tensors)
    _check_tensors(rewritten, values, path)
    _take(rewritten, values, scales)


@torch.no_grad()
def _take(
    rewritten: Rewritten, values: Mapping[str, torch.Tensor], scales: Mapping[str, torch.Tensor]
) -> None:
    """Gives a model the tensors of a delta; matrices that were stored as codes are used as read."""
    for name, matrix in quantised(rewritten).items():
        matrix.scale.copy_(scales.get(name, torch.zeros(2)))
    for name, tensor in rewritten.delta().items():
        tensor.copy_(values[name])


def _check_origin(rewritten: Rewritten, metadata: Mapping[str, str], path: str | Path) -> None:
    if metadata["spec_hash"] != rewritten.spec.hash:
        raise FileError(
            "VR721",
            f"the delta '{path}' is of the spec '{metadata['spec']}', which is not this one",
            notes=["the spec was changed, or other overrides were given"],
        )
    if metadata["base_fingerprint"] != fingerprint(rewritten):
        raise FileError(
            "VR720",
            f"the delta '{path}' was made on other base weights of {metadata['model']}",
            suggestion="apply the spec to the weights that it was trained on",
        )


def _check_tensors(
    rewritten: Rewritten, tensors: Mapping[str, torch.Tensor], path: str | Path
) -> None:
    own = rewritten.delta()
    odd = [k for k in own.keys() & tensors.keys() if own[k].shape != tensors[k].shape]
    found = (
        ("missing", sorted(own.keys() - tensors.keys())),
        ("unexpected", sorted(tensors.keys() - own.keys())),
        ("of another shape", sorted(odd)),
    )
    notes = [f"{what}: {', '.join(names[:4])}" for what, names in found if names]
    if notes:
        raise FileError("VR722", f"the delta '{path}' does not fit", notes=notes)
    check_finite(tensors, path)
