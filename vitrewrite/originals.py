"""`originals.safetensors` of a lowered folder: what it takes to turn it back, bit for bit.

It holds the tensors that the lowered weights lack or have with other values. Its metadata has the
names that the lowered weights have besides, and the hash of all tensors of the unlowered model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from . import __version__
from .errors import FileError, first_line
from .reading import regular
from .rewrite.unlowering import originals, state_hash

if TYPE_CHECKING:
    from .rewrite.rewritten import Rewritten

ORIGINALS, WEIGHTS = "originals.safetensors", "weights.safetensors"
FORMAT = "vitrewrite originals 1"


def save_originals(lowered: Rewritten, folder: Path) -> None:
    """Writes the file of a model whose unlowered form is known."""
    from safetensors.torch import save_file

    assert lowered.unlowered is not None
    old = lowered.unlowered.module.state_dict()
    metadata = {
        "format": FORMAT,
        "spec_hash": lowered.spec.hash,
        "state_hash": state_hash(old),
        "added": "\n".join(sorted(lowered.module.state_dict().keys() - old.keys())),
        "vitrewrite": __version__,
        "torch": torch.__version__,
    }
    kept = {k: v.detach().cpu().clone().contiguous() for k, v in originals(lowered).items()}
    save_file(kept, folder / ORIGINALS, metadata)


def unlowered_state(folder: Path) -> tuple[dict[str, torch.Tensor], int]:
    """All tensors of the unlowered model, and how many of them are not in the lowered weights.

    Raises:
        FileError: VR713 if the originals cannot be read, VR711 if the weights cannot, VR714 if
            they are not those that were written together.
    """
    kept, metadata = _read(folder / ORIGINALS, "VR713", "the originals")
    if metadata.get("format") != FORMAT or not {"added", "state_hash"} <= metadata.keys():
        raise FileError("VR713", f"'{folder / ORIGINALS}' was not written by 'vitrewrite lower'")
    weights, _ = _read(folder / WEIGHTS, "VR711", "weights")
    added = metadata["added"].splitlines()
    state = {**{k: v for k, v in weights.items() if k not in added}, **kept}
    if state_hash(state) != metadata["state_hash"]:
        raise FileError(
            "VR714",
            f"the weights in '{folder}' cannot be turned back: they were changed since",
            notes=[f"{WEIGHTS} with {ORIGINALS} is not the model that was lowered"],
        )
    return state, len(kept)


def _read(path: Path, code: str, what: str) -> tuple[dict[str, torch.Tensor], Mapping[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(regular(path)), framework="pt") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        message = f"cannot read {what} '{path}': {first_line(error)}"
        raise FileError(code, message) from error
