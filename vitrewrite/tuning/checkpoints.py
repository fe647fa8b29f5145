"""Checkpoints: folders that are there whole or not at all, in safetensors and JSON."""

from __future__ import annotations

import os
import shutil
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from ..disk import open_to_readers, reported
from ..errors import FileError
from ..models import buffers_of
from ..storage.hashing import changed, content_digest, digest_of, read_bytes, sealed, unsealed
from ..storage.tensors import Content, check_finite, read_tensors, write_tensors
from ..text import first_line
from .engine import Engine
from .run import Run, persistent_buffers
from .tensors import counts, named, optimiser_state, pack, restore_optimiser, unpack

FORMAT = "vitrewrite checkpoint 3"
_STATE, _TENSORS, _WRITING = "state.json", "tensors.safetensors", ".writing"
# What of a run is in a checkpoint as it is.
_FIELDS = ("position", "step", "total", "results", "seconds", "memory")


class Checkpoints:
    """The checkpoints of a run, by the number of steps done.

    Each has the hashes of its tensors and of the metrics so far, and its state one of itself.

    Args:
        folder: holds one folder for each.
        metrics: the file of the run's metrics, which only grows.
        keep: how many of them stay.
    """

    def __init__(self, folder: Path, metrics: Path, keep: int, engine: Engine) -> None:
        self.folder, self.metrics, self.keep, self.engine = folder, metrics, keep, engine
        self.content: Content | None = None  # of the one that was read

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
            FileError: VR702 if it cannot be written, VR716 if a tensor is not finite; those before
                it are still there.
        """
        tensors: dict[str, torch.Tensor] = {}
        scaler = self.engine.accelerator.scaler
        state = {
            "format": FORMAT,
            "run": {name: getattr(run, name) for name in _FIELDS},
            "model": own_tensors(run, run.module),
            "copies": run.copies,
            "optimiser": optimiser_state(optimiser),
            "counts": counts(optimiser),
            "scaler": scaler.state_dict() if scaler else None,
        }
        _check_numbers(state, run, self.folder)
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
        self._begin()
        with reported(self.folder / name):
            digest = write_tensors(self.folder / _WRITING / _TENSORS, tensors)
        self._commit(name, packed, {_TENSORS: digest})

    def _begin(self) -> None:
        with reported(self.folder):
            shutil.rmtree(self.folder / _WRITING, ignore_errors=True)
            (self.folder / _WRITING).mkdir(parents=True)

    def _commit(self, name: str, packed: Any, files: dict[str, str] | None = None) -> None:
        writing, target = self.folder / _WRITING, self.folder / name
        with reported(target):
            if files is None:  # the processes wrote a part each
                parts = sorted(p for p in writing.iterdir() if p.is_file())
                files = {path.name: content_digest(read_bytes(path)) for path in parts}
            known = {"files": files, "metrics": self._mark()}
            (writing / _STATE).write_bytes(sealed({**packed, **known}).encode())
            open_to_readers(writing)
            for path in (*writing.iterdir(), writing):
                _flush(path)
            writing.rename(target)
            _flush(self.folder)
        for old in self._all()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def _mark(self) -> dict[str, Any]:
        """What the metrics are at this moment."""
        content = read_bytes(self.metrics) if self.metrics.is_file() else b""
        return {"size": len(content), "hash": digest_of(content)}

    # -- loading ----------------------------------------------------------------------------------

    def read(self) -> Any | None:
        """The state of the last checkpoint without its tensors, or None if there is none.

        Raises:
            FileError: VR733 if it cannot be read or is not what was written, VR715 if the metrics
                are not.
        """
        path = self.latest()
        if path is None:
            return None
        try:
            packed = unsealed(read_bytes(path / _STATE))
            if packed["format"] != FORMAT:
                raise ValueError(f"its format is {packed['format']}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _broken(path / _STATE, error) from error
        if self.engine.sharded:
            self.engine.on_main(lambda: _check_parts(path, packed["files"]))
        else:
            try:
                digest = packed["files"][_TENSORS]
                self.content = read_tensors(path / _TENSORS, digest=digest)
            except (FileError, KeyError) as error:
                raise _broken(path / _TENSORS, error) from error
        self.engine.on_main(lambda: self._check_metrics(packed["metrics"]))
        return packed

    def _check_metrics(self, mark: Any) -> None:
        """The metrics are those of the checkpoint, and perhaps more."""
        try:
            content = memoryview(read_bytes(self.metrics))[: mark["size"]]
        except OSError:
            content = memoryview(b"")
        if len(content) < mark["size"] or digest_of(content) != mark["hash"]:
            raise changed(self.metrics)

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
        parts = {key: packed[key] for key in ("model", "copies", "optimiser", "scaler")}
        parameters = dict(run.module.named_parameters())
        empty = {
            name: _like(name, shape, dtype, parameters)
            for name, (shape, dtype) in named(parts).items()
        }
        state = unpack(parts, self._load(path, empty).__getitem__)
        self.content = None
        own = own_tensors(run, run.module)
        if own.keys() != state["model"].keys():
            raise _broken(path, "its tensors are not those of the model")
        _check_numbers(state, run, path)
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state["model"][name])
            for kind, copy in state["copies"].items():
                there = run.copies.setdefault(kind, copy)
                for name, tensor in copy.items():
                    there[name].copy_(tensor)
        restore_optimiser(optimiser, state["optimiser"], packed["counts"])
        if state["scaler"]:
            self.engine.accelerator.scaler.load_state_dict(state["scaler"])

    def _load(self, path: Path, empty: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors that `empty` names; it says how they are distributed."""
        if self.engine.sharded:
            return _load_shards(empty, path)
        assert self.content is not None
        try:
            return {name: self.content.tensors[name] for name in empty}
        except KeyError as error:
            raise _broken(path, f"it has no tensor {error}") from error


def _check_parts(path: Path, files: Any) -> None:
    for name, digest in files.items():
        try:
            found = content_digest(read_bytes(path / Path(name).name))
        except OSError as error:
            raise _broken(path / name, error) from error
        if found != digest:
            raise _broken(path / name, changed(path / name))


def _check_numbers(state: Any, run: Run, where: Path) -> None:
    """Weights are finite; what an optimiser remembers may be infinite, and is never NaN.

    Raises:
        FileError: VR716.
    """
    for tensors in (state["model"], *state["copies"].values()):
        here = {k: local for k, v in tensors.items() if (local := _local(v)) is not None}
        check_finite(here, where, buffers_of(run.module))
    of = {
        f"{key} of {name}": local
        for name, known in state["optimiser"].items()
        for key, value in known.items()
        if isinstance(value, torch.Tensor) and (local := _local(value)) is not None
    }
    check_finite(of, where, of)


def _local(tensor: torch.Tensor) -> torch.Tensor | None:
    """What this process has of a tensor; None while its memory is given back, between steps."""
    local: torch.Tensor = getattr(tensor, "_local_tensor", tensor)
    return None if local.numel() and not local.untyped_storage().nbytes() else local


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
    if kind == "copies":
        rest = rest.partition("/")[2]
    parameter = parameters.get(rest.rpartition("/")[0] if kind == "optimiser" else rest)
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
    if isinstance(reason, FileError):
        reason = reason.message
    elif isinstance(reason, OSError) and reason.strerror:
        reason = reason.strerror.lower()
    elif isinstance(reason, Exception):
        reason = first_line(reason)
    return FileError(
        "VR733",
        f"cannot read the checkpoint '{path}': {reason}",
        suggestion="remove its folder to go on from the one before",
    )
