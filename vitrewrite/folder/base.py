"""The captured base in a folder: what makes it independent of the code that built the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..errors import FileError
from ..program import ProgramError, read_program, write_program
from ..storage.hashing import digest_of
from ..storage.tensors import read_tensors, write_tensors
from .lock import PROGRAM, TABLES, Folder

if TYPE_CHECKING:
    from ..rewrite.rewritten import Rewritten


def save_base(rewritten: Rewritten, folder: Path, weights: bool) -> tuple[dict[str, str], str]:
    """Writes the base of a model as data, if it can be.

    Args:
        rewritten: the model.
        folder: where to.
        weights: whether the folder has weights; tensors that are in them are not written again.

    Returns:
        Hashes of the files by name, and why there are none.
    """
    try:
        program = write_program(rewritten.base)
    except ProgramError as error:
        return {}, str(error)
    text = json.dumps(program.data, separators=(",", ":"), allow_nan=False) + "\n"
    (folder / PROGRAM).write_bytes(text.encode())
    more = _missing(rewritten, program.data["tensors"]) if weights else {}
    found = {PROGRAM: digest_of(text.encode())}
    if tensors := {**program.tables, **more}:
        found[TABLES] = write_tensors(folder / TABLES, tensors)
    return found, ""


def _missing(rewritten: Rewritten, named: list[dict[str, object]]) -> dict[str, torch.Tensor]:
    """Frozen tensors of the base that the unlowered model lacks, as the spec took them out.

    And those, frozen or not, that it has rows or columns of alone.
    """
    from ..rewrite.unlowering import same_bits

    base, unlowered = rewritten.base.state_dict(), rewritten.unlowered or rewritten
    kept = unlowered.module.state_dict()
    trained = rewritten.result.base_trained - unlowered.result.editor.narrowed.keys()
    names = {str(each["name"]) for each in named} & base.keys() - trained
    return {k: base[k] for k in names if k not in kept or not same_bits(base[k], kept[k])}


def load_base(
    folder: Folder, state: Mapping[str, torch.Tensor], *, whole: bool = True
) -> nn.Module:
    """The captured base of a folder, out of that folder alone; no code of others runs.

    Args:
        folder: with a program.
        state: the weights of the rewritten model, which has those of the base under their names.
        whole: whether all of them have to be there; otherwise those that are not are zero.

    Raises:
        FileError: VR715 if a file was changed, VR719 if the program is none.
    """
    data = folder.json(PROGRAM)
    tables: Mapping[str, torch.Tensor] = {}
    if folder.has(TABLES):
        path = folder.path / TABLES
        tables = read_tensors(path, digest=folder.digest(TABLES), what="the tables").tensors
    try:
        return read_program(data, {**state, **tables}, strict=whole)
    except ProgramError as error:
        message = f"the program in '{folder.path / PROGRAM}' is none: {error}"
        raise FileError("VR719", message) from error
