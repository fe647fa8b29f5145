"""The `model.py` of a folder, run with the folder's weights, after both were compared with hashes.

It is code of whoever wrote the folder: it runs if it is what the compiler prints of the data beside
it, or if the user trusts it.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ..emission.twin import emitted_twin
from ..errors import FileError
from ..storage.tensors import read_tensors
from .lock import WEIGHTS, Folder
from .reading import NONE, Trust, load_folder
from .usage import PREPROCESSING, Usage
from .writing import model_text

SOURCE = "model.py"


def usage_of(folder: Folder) -> Usage:
    """What the folder says of its use.

    Raises:
        FileError: VR596 if its model takes no image, VR595 if it says nothing that can be used,
            VR715 if the file was changed.
    """
    if not folder.has(PREPROCESSING):
        raise FileError(
            "VR596",
            f"'{folder.path}' has no {PREPROCESSING}: its model takes no image, or it was "
            "written by an older version",
            suggestion="write it again with 'vitrewrite apply' or vitrewrite.emit",
        )
    return Usage.from_json(folder.json(PREPROCESSING))


def emitted_model(folder: Folder, trust: Trust = NONE) -> nn.Module:
    """The model that `model.py` makes, with its weights, in eval mode.

    Raises:
        FileError: VR715 if a file was changed, or there are no weights; VR718 if `model.py` is not
            what would be printed; and what `load_folder` raises.
        EmitError: VR806, VR807 if it does not run with these weights.
    """
    text = bytes(folder.read(SOURCE))
    state = read_tensors(folder.path / WEIGHTS, digest=folder.digest(WEIGHTS)).tensors
    if not trust.code:
        refuse_strange(folder.path, text)
    return emitted_twin(text.decode(), state)


def refuse_strange(path: Path, text: bytes) -> None:
    """Raises VR718 unless a text is what the compiler prints of the folder."""
    if text != model_text(load_folder(path)).encode():
        raise FileError(
            "VR718",
            f"'{path / SOURCE}' is not what vitrewrite prints of this folder, so it is "
            "code of somebody",
            suggestion="--trust runs it",
        )
