"""`originals.safetensors` of a lowered folder: what it takes to turn it back, bit for bit.

It holds the tensors that the lowered weights lack or have with other values. Its metadata has the
names that the lowered weights have besides, and the hash of all tensors of the unlowered model.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..anatomy.fingerprint import fingerprint_of
from ..errors import FileError
from ..rewrite.unlowering import originals
from ..storage.tensors import check_finite, read_tensors, write_tensors
from ..version import __version__
from .lock import ORIGINALS, WEIGHTS, Folder

if TYPE_CHECKING:
    from ..rewrite.rewritten import Rewritten

FORMAT = "vitrewrite originals 1"


def save_originals(lowered: Rewritten, folder: Path) -> str:
    """Writes the file of a model whose unlowered form is known; returns its hash."""
    assert lowered.unlowered is not None
    old = lowered.unlowered.module.state_dict()
    metadata = {
        "format": FORMAT,
        "spec_hash": lowered.stated.hash,
        "state_hash": fingerprint_of(old),
        "added": "\n".join(sorted(lowered.module.state_dict().keys() - old.keys())),
        "vitrewrite": __version__,
        "torch": torch.__version__,
    }
    return write_tensors(folder / ORIGINALS, originals(lowered), metadata)


def unlowered_state(folder: Folder) -> dict[str, torch.Tensor]:
    """All tensors of the unlowered model.

    Raises:
        FileError: VR713 if the originals cannot be read, VR711 if the weights cannot, VR715 if
            either was changed, VR716 if they
            are not finite, VR714 if they are not those that were written together.
    """
    path = folder.path / ORIGINALS
    if not folder.has(ORIGINALS):
        raise FileError("VR713", f"'{path}' is gone, which it takes to turn the folder back")
    found = read_tensors(path, digest=folder.digest(ORIGINALS), code="VR713", what="the originals")
    if found.metadata.get("format") != FORMAT or not {"added", "state_hash"} <= (
        found.metadata.keys()
    ):
        raise FileError("VR713", f"'{path}' was not written by 'vitrewrite lower'")
    check_finite(found.tensors, path)
    weights = read_tensors(folder.path / WEIGHTS, digest=folder.digest(WEIGHTS)).tensors
    added = found.metadata["added"].splitlines()
    state = {**{k: v for k, v in weights.items() if k not in added}, **found.tensors}
    if fingerprint_of(state) != found.metadata["state_hash"]:
        raise FileError(
            "VR714",
            f"the weights in '{folder.path}' cannot be turned back: they were changed since",
            notes=[f"{WEIGHTS} with {ORIGINALS} is not the model that was lowered"],
        )
    return state
