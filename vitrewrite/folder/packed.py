"""What a task stores of quantised matrices: codes of few bits, in a delta or as plain bytes.

In a delta, `NAME.codes` and `NAME.scale`, mean and deviation, stand in the place of the latent
numbers `NAME`. Plain bytes are those of the authors of Bi-LoRA: the codes and the scale of each
matrix, in the order of the model, then what else is trained as float32, weights before biases; no
names, no header.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..disk import replacing_file
from ..errors import FileError, RewriteError
from ..layers.packing import dequantised, is_flat, pack, size_of
from ..layers.quantised import Quantised
from ..storage.hashing import read_bytes
from ..storage.tensors import check_finite

if TYPE_CHECKING:
    from ..rewrite.rewritten import Rewritten

CODES, SCALE = ".codes", ".scale"
PLAIN = ".bin"
"""The suffix of a file of plain bytes."""


def quantised(rewritten: Rewritten) -> dict[str, Quantised]:
    """The matrices of few bits in a model, by the names that a delta has for them."""
    found = (m for m in rewritten.module.modules() if isinstance(m, Quantised) and m.bits < 32)
    by_memory = {m.weight.data_ptr(): m for m in found}
    delta = rewritten.delta() if by_memory else {}
    return {n: by_memory[t.data_ptr()] for n, t in delta.items() if t.data_ptr() in by_memory}


def encoded(rewritten: Rewritten, *, bits: bool) -> dict[str, torch.Tensor]:
    """The delta as a file holds it.

    Args:
        rewritten: the model.
        bits: whether all quantised matrices are codes; those that were read from codes are anyway.

    Raises:
        RewriteError: VR445, VR446 for a matrix that no codes stand for; VR448 if there is none.
    """
    matrices = quantised(rewritten)
    if bits and not matrices:
        raise _nothing(rewritten)
    found = {}
    for name, tensor in rewritten.delta().items():
        if name in matrices and (bits or matrices[name].scale[1] > 0):
            found[name + CODES], found[name + SCALE] = _packed(name, matrices[name])
        else:
            found[name] = tensor
    return found


def decoded(
    rewritten: Rewritten, tensors: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The tensors of a delta, and the scale of each matrix that was stored as codes.

    Codes that are not those of the matrix stay what they are, as tensors that nobody expects.

    Raises:
        RewriteError: VR445 for a matrix of equal numbers.
    """
    values, scales = dict(tensors), {}
    for name, matrix in quantised(rewritten).items():
        codes, scale = tensors.get(name + CODES), tensors.get(name + SCALE)
        if codes is not None and scale is not None and _fits(matrix, codes, scale):
            values[name] = dequantised(matrix, codes.to(matrix.levels.device), _near(matrix, scale))
            scales[name] = scale
            del values[name + CODES], values[name + SCALE]
        elif name in values and values[name].shape == matrix.weight.shape:
            check_spread(name, values[name])
    return values, scales


def check_spread(name: str, values: torch.Tensor) -> None:
    """Raises VR445 unless the numbers of a quantised matrix differ."""
    if is_flat(values):
        raise RewriteError(
            "VR445",
            f"all numbers of the quantised matrix '{name}' are {values.flatten()[0]:g}",
            suggestion="levels lie around a mean, as far apart as the numbers vary",
        )


def _fits(matrix: Quantised, codes: torch.Tensor, scale: torch.Tensor) -> bool:
    whole = codes.dtype == torch.uint8 and codes.shape == (size_of(matrix),)
    return whole and scale.dtype == torch.float32 and scale.shape == (2,) and bool(scale[1] > 0)


def _near(matrix: Quantised, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(matrix.levels.device)


def _packed(name: str, matrix: Quantised) -> tuple[torch.Tensor, torch.Tensor]:
    check_spread(name, matrix.weight)
    try:
        return pack(matrix)
    except ValueError as error:
        raise RewriteError(
            "VR446",
            f"the quantised matrix '{name}' cannot be packed: {error}",
            suggestion="train on from a delta with latent numbers, as vitrewrite.save writes it",
        ) from error


def _nothing(rewritten: Rewritten) -> RewriteError:
    known = "see 'vitrewrite explain bi.lora'"
    return RewriteError(
        "VR448",
        "the model has no matrix of few bits to pack",
        suggestion="pack it before it is lowered" if rewritten.lowered else known,
    )


# -- plain bytes ----------------------------------------------------------------------------------


def write_plain(rewritten: Rewritten, path: Path) -> None:
    """Writes the delta as plain bytes.

    Raises:
        FileError: VR702 if the file cannot be written, VR716 if a tensor is not finite.
        RewriteError: VR445, VR446, VR448 as `encoded`.
    """
    tensors = encoded(rewritten, bits=True)
    check_finite(tensors, "the delta")
    names = _in_order(rewritten, quantised(rewritten))
    keys = (n for name in names for n in (name + CODES, name + SCALE, name) if n in tensors)
    parts = (tensors[key].detach().cpu().contiguous() for key in keys)
    with replacing_file(path) as growing, growing.open("wb") as file:
        for part in parts:
            exact = part if part.dtype == torch.uint8 else part.float()
            file.write(exact.numpy().tobytes())


def read_plain(rewritten: Rewritten, path: Path) -> dict[str, torch.Tensor]:
    """The tensors in plain bytes, named as a packed delta has them.

    Raises:
        FileError: VR711 if the file cannot be read.
        RewriteError: VR447 if it has not as many bytes as the model asks for, VR448.
    """
    try:
        raw = read_bytes(path)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise FileError("VR711", f"cannot read the delta '{path}': {reason}") from error
    matrices, delta = quantised(rewritten), rewritten.delta()
    if not matrices:
        raise _nothing(rewritten)
    wanted = list(_pieces(_in_order(rewritten, matrices), matrices, delta))
    size = sum(count * dtype.itemsize for _, dtype, count in wanted)
    if len(raw) != size:
        raise RewriteError("VR447", f"'{path}' has {len(raw)} bytes, and the model takes {size}")
    found, start = {}, 0
    for name, dtype, count in wanted:
        piece = raw[start : start + count * dtype.itemsize]
        found[name] = torch.frombuffer(piece, dtype=dtype).clone()
        start += len(piece)
    return {n: t.view_as(delta[n]) if n in delta else t for n, t in found.items()}


def _pieces(
    names: Iterable[str], matrices: Mapping[str, Quantised], delta: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, torch.dtype, int]]:
    for name in names:
        if name in matrices:
            yield name + CODES, torch.uint8, size_of(matrices[name])
            yield name + SCALE, torch.float32, 2
        else:
            yield name, torch.float32, delta[name].numel()


def _in_order(rewritten: Rewritten, matrices: Mapping[str, Quantised]) -> list[str]:
    """The names of a delta as plain bytes have them: matrices first, each in the model's order."""
    root, delta = rewritten.module, rewritten.delta()
    places = {path: i for i, (path, _) in enumerate(root.named_modules())}
    order = {
        id(m): places[insertion.path]
        for insertion in rewritten.result.editor.insertions
        for m in root.get_submodule(insertion.path).modules()
    }
    state = {t.data_ptr(): i for i, t in enumerate(root.state_dict().values())}
    rest = [name for name in delta if name not in matrices]
    rest.sort(key=lambda name: state.get(delta[name].data_ptr(), len(state)))
    return [*sorted(matrices, key=lambda name: order[id(matrices[name])]), *rest]
