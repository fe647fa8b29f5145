"""Checkpoints as people have them: one file, several, or a folder; nothing in them is run."""

from __future__ import annotations

import json
import pickle
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..catalog import is_file
from ..errors import FileError
from ..storage.tensors import read_shapes, read_tensors
from ..text import first_line, listing, shown
from .jax import read_npz

_INDEX = ".index.json"
# What a folder of Hugging Face or timm may hold, the best first.
_FILES = (
    "model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)  # fmt: skip
# Where training scripts put the weights, the averaged ones first, as timm has them.
_NESTS = (
    "state_dict_ema", "model_ema", "ema", "state_dict", "model_state_dict", "model", "module",
    "teacher", "weights", "net",
)  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint under the names that it gives them.

    Attributes:
        source: the file or folder.
        tensors: by name; on meta if only shapes were asked for.
        told: what a user should know of how it was read, a line each.
    """

    source: str
    tensors: dict[str, torch.Tensor]
    told: tuple[str, ...] = ()


def read_checkpoint(path: str | Path, *, meta: bool = False) -> Checkpoint:
    """Reads the tensors of a checkpoint.

    Args:
        path: a safetensors file; one of `torch.save`, read with `weights_only`; the `.npz` of the
            original ViT; the index of a checkpoint in several files; or a folder of Hugging Face
            or timm with one of these.
        meta: whether names, shapes and dtypes are enough.

    Raises:
        FileError: VR711 if it cannot be read, holds no tensors, or holds more than data.
    """
    path = Path(path)
    file = _in_folder(path) if path.is_dir() else path
    names = _parts(file) if file.name.endswith(_INDEX) else [file]
    found: dict[str, torch.Tensor] = {}
    told: list[str] = []
    for each in names:
        tensors, nest = _tensors_of(each, meta=meta)
        found.update(tensors)
        if nest:
            told.append(f"of '{each}', the weights are those under {nest!r}")
    if not found:
        raise _unreadable(path, "it holds no tensors")
    return Checkpoint(str(path), found, tuple(dict.fromkeys(told)))


def _in_folder(folder: Path) -> Path:
    for name in _FILES:
        if (folder / name).is_file():
            return folder / name
    raise FileError(
        "VR711",
        f"the folder '{folder}' has no weights in it",
        suggestion=f"one of {listing(_FILES)} is looked for",
    )


def _parts(index: Path) -> list[Path]:
    """The files of a checkpoint that is in several.

    Raises:
        FileError: VR711 if the index is none, or names what is no file beside it.
    """
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        if any(Path(name).name != name for name in names):
            raise ValueError("it names files that are not beside it")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _unreadable(index, first_line(error)) from error
    return [index.parent / name for name in names]


def _tensors_of(file: Path, *, meta: bool) -> tuple[dict[str, torch.Tensor], str]:
    """The tensors of one file, and where in it they were."""
    if not is_file(file):
        missing = not file.exists()
        reason = "no such file or directory" if missing else "it is no regular file"
        raise _unreadable(file, reason)
    if file.suffix == ".npz":
        try:
            found = read_npz(file)
        except Exception as error:  # whatever numpy makes of a file of somebody else
            raise _unreadable(file, first_line(error)) from error
        return {k: v.to("meta") for k, v in found.items()} if meta else found, ""
    with file.open("rb") as opened:
        begin = opened.read(2)
    if begin != b"PK" and begin[:1] != b"\x80":  # neither of the two forms of `torch.save`
        return (read_shapes(file) if meta else read_tensors(file).tensors), ""
    return _innermost(_unpickled(file, meta=meta), file)


def _unpickled(file: Path, *, meta: bool) -> Any:
    """What `torch.save` wrote, if it is data.

    Raises:
        FileError: VR711 if it is not, or was cut short.
    """
    try:
        with torch.serialization.safe_globals([Namespace]):  # what timm's own training keeps
            return torch.load(file, map_location="meta" if meta else "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _program(file) from error
    except Exception as error:  # whatever a file of somebody else makes torch say
        if "TorchScript" in str(error):
            raise _program(file) from error
        raise _unreadable(file, f"it was cut short, or damaged: {first_line(error)}") from error


def _program(file: Path) -> FileError:
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # of old files torch cannot tell
        named = []
    return FileError(
        "VR711",
        f"'{file}' holds more than tensors: reading it would run code"
        + (f" ({listing(sorted(named), 3)})" if named else ""),
        suggestion='if you trust it, convert it once, apart from vitrewrite: python -c "import '
        "torch, safetensors.torch as s; x = torch.load('FILE', weights_only=False); "
        "s.save_file((x if isinstance(x, dict) else x.state_dict()), 'FILE.safetensors')\"",
    )


def _innermost(value: Any, file: Path) -> tuple[dict[str, torch.Tensor], str]:
    """The tensors of what a training script saved, and under which keys they were."""
    way: list[str] = []
    while isinstance(value, Mapping):
        found = {k: v for k, v in value.items() if isinstance(v, torch.Tensor)}
        nest = next(iter(_nests(value)), None)
        if nest is None or len(found) > len(value) / 2:
            return {str(k): v for k, v in found.items()}, ".".join(way)
        way.append(nest)
        value = value[nest]
    raise _unreadable(file, f"it holds {shown(type(value).__name__)} where weights should be")


def _nests(value: Mapping[Any, Any]) -> Iterator[str]:
    return (k for k in _NESTS if isinstance(value.get(k), Mapping) and value[k])


def _unreadable(path: Path, reason: str) -> FileError:
    return FileError("VR711", f"cannot read weights '{path}': {reason}")
