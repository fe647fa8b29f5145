"""Safetensors files: read once, hashed and parsed from the same bytes; equal input, equal bytes.

The format is that of the safetensors library (a length, a JSON header, the tensors one after the
other). Written here so that bytes depend on nothing but the content, and writing copies nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from ..errors import FileError
from ..text import first_line, listing
from .hashing import (
    DIGEST,
    content_digest,
    digest_of,
    parsed,
    read_bytes,
    read_checked,
    tensor_digest,
)

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool, "C64": torch.complex64, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_BLANK = "0" * 40
_LONGEST = 100_000_000  # bytes of a header, as the library has it


@dataclass(frozen=True)
class Content:
    """What is in a file.

    Attributes:
        tensors: by name.
        metadata: texts by name.
        intact: whether a hash says that it is what was written: a lock file's, or its own.
    """

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]
    intact: bool


# -- writing --------------------------------------------------------------------------------------


def write_tensors(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    seal: bool = False,
) -> str:
    """Writes a safetensors file.

    Args:
        path: the file.
        tensors: by name, on any device.
        metadata: texts.
        seal: whether a digest of the file goes into its metadata, for one that has no lock file.

    Returns:
        The hash of the file.

    Raises:
        OSError: if it cannot be written.
        FileError: VR702 for a dtype that the format has not.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    texts = dict(sorted((metadata or {}).items()))
    if seal:
        texts[DIGEST] = _BLANK
        blank = _header(tensors, order, texts)
        texts[DIGEST] = digest_of(blank, *(bits_of(tensors[name]) for name in order))
    header, bits = _header(tensors, order, texts), []
    with path.open("wb") as file:
        file.write(header)
        for name in order:
            raw = _raw(tensors[name])
            bits.append(tensor_digest(tensors[name], raw))
            file.write(raw)
    return digest_of(header, *bits)


def bits_of(tensor: torch.Tensor) -> bytes:
    """The hash of a tensor's bits, on any device."""
    return tensor_digest(tensor, _raw(tensor))


def _header(
    tensors: Mapping[str, torch.Tensor], order: Iterable[str], metadata: Mapping[str, str]
) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        if tensors[name].dtype not in _NAMES:
            raise FileError("VR702", f"safetensors has no {tensors[name].dtype}, as '{name}' is")
        start, end = end, end + tensors[name].numel() * tensors[name].element_size()
        entries[name] = {
            "dtype": _NAMES[tensors[name].dtype], "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }  # fmt: skip
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _raw(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor; copied only if it is somewhere else, or not in one piece."""
    plain = tensor.detach().cpu().contiguous().flatten()
    return plain.view(torch.uint8).numpy().data


# -- reading --------------------------------------------------------------------------------------


def read_tensors(
    path: str | Path, *, digest: str | None = None, code: str = "VR711", what: str = "weights"
) -> Content:
    """Reads a safetensors file, in one pass over its bytes.

    Args:
        path: the file.
        digest: the hash that it has to have, if a lock file says so.
        code: of the error for a file that cannot be read.
        what: what is in it, for messages.

    Raises:
        FileError: VR715 if its hash is another; `code` if it cannot be read.
    """
    path = Path(path)
    try:
        raw = read_bytes(path) if digest is None else read_checked(path, digest)
        header, start = _parsed_header(raw)
        metadata = header.pop("__metadata__", {})
        if not all(isinstance(v, str) for v in metadata.values()):
            raise ValueError("its metadata is no text")
        places = list(_places(header, start, len(raw)))
        intact = digest is not None or _is_sealed(raw, start, metadata)
        return Content(_taken(raw, places), metadata, intact)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise _unreadable(path, error, code, what) from error


def read_shapes(path: Path, *, code: str = "VR711", what: str = "weights") -> dict[str, Any]:
    """What tensors a safetensors file has, on meta: its header alone is read.

    Raises:
        FileError: `code` if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(begin := file.read(8), "little")
            header, start = _parsed_header(bytearray(begin + file.read(min(size, _LONGEST))))
        header.pop("__metadata__", None)
        found = dict(_places(header, start, path.stat().st_size))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(path, error, code, what) from error
    return {
        name: torch.empty(shape, dtype=dtype, device="meta")
        for name, (dtype, shape, _) in found.items()
    }


def _unreadable(path: Path, error: Exception, code: str, what: str) -> FileError:
    of_system = isinstance(error, OSError) and error.strerror
    reason = error.strerror.lower() if of_system else first_line(error)  # type: ignore[attr-defined]
    return FileError(code, f"cannot read {what} '{path}': {reason}")


def _parsed_header(raw: bytearray) -> tuple[dict[str, Any], int]:
    start = 8 + int.from_bytes(raw[:8], "little")
    if len(raw) < 8 or start > len(raw):
        raise ValueError("it is no safetensors file, or was cut short")
    header = parsed(raw[8:start])
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
        raise ValueError("it is no safetensors file")
    return header, start


_Place: TypeAlias = tuple[torch.dtype, list[int], int]


def _taken(raw: bytearray, places: Sequence[tuple[str, _Place]]) -> dict[str, torch.Tensor]:
    """The tensors in a file's bytes, which are given up on the way: at most half of them lie twice.

    Each gets memory of its own, where torch would have put it: kernels round otherwise where a
    tensor begins in the middle of a cache line, and a model would differ from its copy.
    """
    tensors = {}
    for name, (dtype, shape, offset) in reversed(places):
        tensors[name] = _tensor(raw, dtype, shape, offset).clone()
        del raw[offset:]
    return dict(reversed(tensors.items()))


def _places(header: Mapping[str, Any], start: int, size: int) -> Iterator[tuple[str, _Place]]:
    """Where the tensors are that the header names, which cover all that follows it."""
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
        if not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError(f"'{name}' has an odd shape")
        count = math.prod(shape)
        begin, last = entry["data_offsets"]
        if (begin, last) != (end, end + count * dtype.itemsize) or start + last > size:
            raise ValueError(f"'{name}' is not where its header says, or was cut short")
        yield name, (dtype, shape, start + begin)
        end = last
    if start + end != size:
        raise ValueError("there is more in it than its header says")


def _tensor(raw: bytearray, dtype: torch.dtype, shape: list[int], offset: int) -> torch.Tensor:
    count = math.prod(shape)
    if not count:
        return torch.empty(shape, dtype=dtype)
    if offset % dtype.itemsize:  # of files that others wrote
        raw, offset = raw[offset : offset + count * dtype.itemsize], 0
    return torch.frombuffer(raw, dtype=dtype, count=count, offset=offset).reshape(shape)


def _is_sealed(raw: bytearray, start: int, metadata: Mapping[str, str]) -> bool:
    found = metadata.get(DIGEST, "")
    header = bytes(raw[:start])
    mark = f'"{DIGEST}":"{found}"'.encode()
    if not found or header.count(mark) != 1:
        return False
    blank = header.replace(mark, f'"{DIGEST}":"{_BLANK}"'.encode())
    return content_digest(raw, blank) == found


# -- numbers --------------------------------------------------------------------------------------


def check_finite(
    tensors: Mapping[str, torch.Tensor], where: str | Path, buffers: Collection[str] = ()
) -> None:
    """Refuses numbers that no model computes with.

    Args:
        tensors: by name.
        where: the file that they are in, or what they belong to.
        buffers: names that may hold infinities, as masks do; nothing may hold NaN.

    Raises:
        FileError: VR716 with the names of all tensors that are not finite.
    """
    odd = [name for name, tensor in tensors.items() if not _is_fine(tensor, name in buffers)]
    if odd:
        first = tensors[odd[0]].detach().float()
        kind = "NaN" if bool(first.isnan().any()) else "infinite numbers"
        raise FileError("VR716", f"'{where}' holds {kind}: {listing(odd, 3)}")


def _is_fine(tensor: torch.Tensor, infinite: bool) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.is_meta:
        return True
    tensor = tensor.detach()
    if tensor.dtype.itemsize == 1:  # of float8 torch has no such functions
        tensor = tensor.float()
    # A sum is not finite if one number is not, and needs no memory; it may overflow, though.
    if bool(tensor.sum().isfinite()):
        return True
    return not bool(tensor.isnan().any()) if infinite else bool(tensor.isfinite().all())
