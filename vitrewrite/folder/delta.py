"""Deltas: what a spec added or trains, as a file that says what it belongs to."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..disk import LOCK, replacing_file
from ..emission.literals import one_line
from ..errors import FileError
from ..storage.hashing import changed
from ..storage.tensors import Content, check_finite, read_tensors, write_tensors
from ..version import __version__
from .adapter import is_adapter, read_adapter
from .identity import BASE, fingerprint, hashes
from .lock import Folder
from .packed import PLAIN, decoded, encoded, quantised, read_plain

if TYPE_CHECKING:
    from ..rewrite.rewritten import Rewritten

FORMAT = "vitrewrite delta 1"


def save_delta(
    rewritten: Rewritten, path: str | Path, base: str | None = None, *, packed: bool = False
) -> str:
    """Writes what the spec added or trains, with what it belongs to in the metadata.

    Args:
        rewritten: the model.
        path: the file.
        base: the fingerprint of its base, if that is known; it takes a pass over all weights.
        packed: whether quantised matrices are written as codes of few bits.

    Returns:
        The hash of the file.

    Raises:
        FileError: VR702 if the file cannot be written, VR716 if a tensor is not finite, VR717 if
            it is one of the files of a folder.
        RewriteError: VR445, VR446, VR448 if there is nothing to pack, or it cannot be.
    """
    leave_folders(Path(path))
    tensors = encoded(rewritten, bits=packed)
    check_finite(tensors, "the delta")
    metadata = {
        "format": FORMAT,
        "model": rewritten.model_name,
        "spec": rewritten.spec.name,
        "spec_hash": rewritten.stated.hash,
        BASE: fingerprint(rewritten) if base is None else base,
        "vitrewrite": __version__,
        "torch": torch.__version__,
    }
    metadata = {key: one_line(value) for key, value in metadata.items()}
    with replacing_file(Path(path)) as temporary:
        return write_tensors(temporary, tensors, metadata, seal=True)


def leave_folders(path: Path) -> None:
    """A folder is written as a whole: its weights would no longer be what its delta makes."""
    if not (path.parent / LOCK).is_file():
        return
    try:
        files = Folder.open(path.parent).lock["files"]
    except FileError:
        return
    if path.name in files:
        raise FileError(
            "VR717",
            f"'{path}' belongs to a folder, whose weights would no longer fit",
            suggestion=f"vitrewrite.emit(rewritten, '{path.parent}') writes the whole folder",
        )


def load_delta(rewritten: Rewritten, path: str | Path, digest: str | None = None) -> None:
    """Loads a delta into a model that the same spec made from the same base.

    Args:
        rewritten: the model.
        path: the file, or a folder of PEFT; a file of plain bytes if it ends in `.bin`, which do
            not say what they belong to.
        digest: its hash, if a lock file says so; otherwise it has one of its own.

    Raises:
        FileError: as `read_delta`. Nothing is changed then.
        RewriteError: VR445 for a quantised matrix of equal numbers, VR447 for plain bytes of
            another size.
    """
    if digest is None and Path(path).suffix == PLAIN:
        tensors = read_plain(rewritten, Path(path))
        check_finite(tensors, path)
        put(rewritten, *decoded(rewritten, tensors))
    elif is_adapter(Path(path)):
        put(rewritten, read_adapter(rewritten, Path(path)))
    else:
        put(rewritten, *_fitting(rewritten, path, digest))


@torch.no_grad()
def put(
    rewritten: Rewritten,
    tensors: Mapping[str, torch.Tensor],
    scales: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Copies the tensors of a delta that fits into a model.

    Args:
        rewritten: the model.
        tensors: all of the delta, by name.
        scales: of the quantised matrices that were stored as codes, and are used as read.
    """
    for name, matrix in quantised(rewritten).items():
        matrix.scale.copy_((scales or {}).get(name, torch.zeros(2)))
    for name, tensor in rewritten.delta().items():
        tensor.copy_(tensors[name])


def read_delta(
    rewritten: Rewritten, path: str | Path, heads: Collection[str] = ()
) -> dict[str, torch.Tensor]:
    """The tensors of a delta that fits a model.

    Args:
        rewritten: the model.
        path: the file, or a folder of PEFT.
        heads: names of tensors that may have another number of classes.

    Raises:
        FileError: VR711 if it cannot be read, VR715 if it was changed since it was written, VR716
            if a tensor is not finite, VR720 for another base, VR721 for another spec, VR722 for
            missing, unexpected or misshapen tensors, and for packed ones; of a folder of PEFT
            VR770 to VR772.
    """
    if is_adapter(Path(path)):
        return read_adapter(rewritten, Path(path))
    tensors, scales = _fitting(rewritten, path, None, heads)
    if scales:
        raise FileError(
            "VR722",
            f"the delta '{path}' is packed, and not what was trained",
            suggestion="save it without packing",
        )
    return dict(tensors)


def _fitting(
    rewritten: Rewritten, path: str | Path, digest: str | None, heads: Collection[str] = ()
) -> tuple[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]]:
    """The tensors in a file that fit a model, and the scales of those that were packed."""
    found = read_file(path, digest)
    own, metadata = rewritten.delta(), found.metadata
    resized = {
        k: v for k, v in found.tensors.items() if k in heads and k in own and differs(v, own[k])
    }
    classes = {len(tensor) for tensor in resized.values()}
    known = hashes(rewritten.stated, classes.pop() if len(classes) == 1 else None)
    if metadata["spec_hash"] not in known:
        raise FileError(
            "VR721",
            f"the delta '{path}' is of the spec '{metadata['spec']}', which is not this one",
            notes=["the spec was changed, or other overrides were given"],
        )
    if metadata[BASE] != fingerprint(rewritten, resized):
        raise FileError(
            "VR720",
            f"the delta '{path}' was made on other base weights of {metadata['model']}",
            suggestion="apply the spec to the weights that it was trained on",
        )
    tensors, scales = decoded(rewritten, found.tensors)
    check_shapes(own, tensors, path, resized)
    check_finite(tensors, path)
    return tensors, scales


def read_file(path: str | Path, digest: str | None = None) -> Content:
    """What is in the file of a delta.

    Raises:
        FileError: VR711 if it is none, VR715 if it was changed since it was written.
    """
    found = read_tensors(path, digest=digest, what="the delta")
    known = {"model", "spec", "spec_hash", BASE} <= found.metadata.keys()
    if found.metadata.get("format") != FORMAT or not known:
        raise FileError("VR711", f"'{path}' is no delta of vitrewrite")
    if not found.intact:
        raise changed(Path(path))
    return found


def differs(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors differ in their first length and in nothing else."""
    return one.shape[:1] != other.shape[:1] and one.shape[1:] == other.shape[1:]


def check_shapes(
    own: Mapping[str, torch.Tensor],
    tensors: Mapping[str, torch.Tensor],
    what: str | Path,
    resized: Collection[str] = (),
) -> None:
    """Whether there are the tensors of a delta and no others.

    Raises:
        FileError: VR722 if not.
    """
    both = own.keys() & tensors.keys() - set(resized)
    odd = [k for k in both if own[k].shape != tensors[k].shape]
    found = (
        ("missing", sorted(own.keys() - tensors.keys())),
        ("unexpected", sorted(tensors.keys() - own.keys())),
        ("of another shape", sorted(odd)),
    )
    notes = [f"{what}: {', '.join(names[:4])}" for what, names in found if names]
    if notes:
        raise FileError("VR722", f"the delta '{what}' does not fit", notes=notes)
