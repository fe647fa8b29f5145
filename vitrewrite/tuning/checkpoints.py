"""Checkpoints: folders that are there whole or not at all, in safetensors and JSON."""

from __future__ import annotations

import json
import os
import shutil
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from ..disk import open_to_readers, reported
from ..errors import FileError
from ..reading import read_json, regular
from .engine import Engine
from .run import Run, persistent_buffers
from .tensors import named, optimiser_state, pack, restore_optimiser, unpack

FORMAT = "vitrewrite checkpoint 1"
_STATE, _TENSORS, _WRITING = "state.json", "tensors.safetensors", ".writing"
# What of a run is in a checkpoint as it is.
_FIELDS = ("position", "step", "total", "results", "seconds", "memory")


class Checkpoints:
    """The checkpoints of a run, by the number of steps done.

    Args:
        folder: holds one folder for each.
        keep: how many of them stay.
    """

    def __init__(self, folder: Path, keep: int, engine: Engine) -> None:
        self.folder, self.keep, self.engine = folder, keep, engine

    def latest(self) -> Path | None:
        """The last one, if there is any."""
        return max(self._all(), default=None)

    def _all(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(p for p in self.folder.iterdir() if not p.name.startswith("."))

    # -- saving -----------------------------------------------------------------------------------

    def save(self, run: Run, optimiser: torch.optim.Optimizer) -> None:
        """Writes a checkpoint and removes the oldest ones.

        Raises:
            FileError: VR702 if it cannot be written; those before it are still there.
        """
        tensors: dict[str, torch.Tensor] = {}
        scaler = self.engine.accelerator.scaler
        state = {
            "format": FORMAT,
            "run": {name: getattr(run, name) for name in _FIELDS},
            "model": own_tensors(run, run.module),
            "optimiser": optimiser_state(optimiser),
            "scaler": scaler.state_dict() if scaler else None,
        }
        packed = pack(state, tensors)
        # The position comes first: a phase without steps has the total of the one before.
        name = f"{run.position:02}-{run.total:08}"
        if self.engine.sharded:
            self.engine.on_main(self._begin)
            _save_shards(tensors, self.folder / _WRITING)
            self.engine.on_main(lambda: self._commit(name, packed))
        else:
            self.engine.on_main(lambda: self._save_whole(name, packed, tensors))

    def _save_whole(self, name: str, packed: Any, tensors: dict[str, torch.Tensor]) -> None:
        from safetensors.torch import save_file

        self._begin()
        plain = {k: v.cpu().clone().contiguous() for k, v in tensors.items()}
        with reported(self.folder / name):
            save_file(plain, self.folder / _WRITING / _TENSORS)
        self._commit(name, packed)

    def _begin(self) -> None:
        with reported(self.folder):
            shutil.rmtree(self.folder / _WRITING, ignore_errors=True)
            (self.folder / _WRITING).mkdir(parents=True)

    def _commit(self, name: str, packed: Any) -> None:
        writing, target = self.folder / _WRITING, self.folder / name
        with reported(target):
            (writing / _STATE).write_text(json.dumps(packed), encoding="utf-8")
            open_to_readers(writing)
            for path in (*writing.iterdir(), writing):
                _flush(path)
            writing.rename(target)
            _flush(self.folder)
        for old in self._all()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)

    # -- loading ----------------------------------------------------------------------------------

    def read(self) -> Any | None:
        """The state of the last checkpoint without its tensors, or None if there is none.

        Raises:
            FileError: VR733 if it cannot be read.
        """
        path = self.latest()
        if path is None:
            return None
        try:
            packed = read_json(path / _STATE)
            if packed["format"] != FORMAT:
                raise ValueError(f"its format is {packed['format']}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _broken(path, error) from error
        return packed

    def restore_memory(self, run: Run, packed: Any) -> None:
        """Sets where a run is and what it remembers, which is needed to build its model."""
        path = self.latest()
        assert path is not None
        wanted = named(packed["run"])
        empty = {n: torch.empty(shape, dtype=dtype) for n, (shape, dtype) in wanted.items()}
        found = self._load(path, empty)
        for name, value in unpack(packed["run"], found.__getitem__).items():
            setattr(run, name, value)

    def restore(self, run: Run, optimiser: torch.optim.Optimizer, packed: Any) -> None:
        """Sets the tensors of a run whose model is built."""
        path = self.latest()
        assert path is not None
        parts = {key: packed[key] for key in ("model", "optimiser", "scaler")}
        parameters = dict(run.module.named_parameters())
        empty = {
            name: _like(name, shape, dtype, parameters)
            for name, (shape, dtype) in named(parts).items()
        }
        state = unpack(parts, self._load(path, empty).__getitem__)
        own = own_tensors(run, run.module)
        if own.keys() != state["model"].keys():
            raise _broken(path, "its tensors are not those of the model")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state["model"][name])
        restore_optimiser(optimiser, state["optimiser"])
        if state["scaler"]:
            self.engine.accelerator.scaler.load_state_dict(state["scaler"])

    def _load(self, path: Path, empty: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors that `empty` names; it says how they are distributed."""
        if self.engine.sharded:
            return _load_shards(empty, path)
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(regular(path / _TENSORS)), framework="pt") as file:
                return {name: file.get_tensor(name) for name in empty}
        except (OSError, SafetensorError) as error:
            raise _broken(path, error) from error


def own_tensors(run: Run, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a copy of the phase's model that are not the base's."""
    own = run.own()
    tensors = {**dict(module.named_parameters()), **dict(persistent_buffers(module))}
    return {name: tensors[name].detach() for name in sorted(own)}


def _like(
    name: str, shape: list[int], dtype: torch.dtype, parameters: dict[str, torch.nn.Parameter]
) -> torch.Tensor:
    """An empty tensor for one of a checkpoint, distributed as its parameter is."""
    kind, _, rest = name.removeprefix("/").partition("/")
    parameter = parameters.get(rest if kind == "model" else rest.rpartition("/")[0])
    if parameter is not None and list(parameter.shape) == shape:
        return torch.zeros_like(parameter.detach(), dtype=dtype)
    return torch.zeros(shape, dtype=dtype)


def _save_shards(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    checkpoint = _distributed()
    made = checkpoint.HuggingFaceStorageWriter
    # In torch 2.8 the argument had another name.
    name = (
        "save_distributed" if "save_distributed" in signature(made).parameters else "save_sharded"
    )
    writer = made(str(folder), **{name: True})
    with reported(folder):
        checkpoint.save(tensors, storage_writer=writer)


def _load_shards(empty: dict[str, torch.Tensor], folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = _distributed()
    try:
        if empty:
            checkpoint.load(empty, storage_reader=checkpoint.HuggingFaceStorageReader(str(folder)))
    except Exception as error:  # the library has many ways to say that it cannot
        raise _broken(folder, error) from error
    return empty


def _distributed() -> Any:
    """torch.distributed.checkpoint, writing safetensors: its own format is a pickle."""
    import torch.distributed.checkpoint

    return torch.distributed.checkpoint


def _flush(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _broken(path: Path, reason: object) -> FileError:
    return FileError(
        "VR733",
        f"cannot read the checkpoint '{path}': {reason}",
        suggestion="remove it to go on from the one before",
    )
