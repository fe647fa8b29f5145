"""A folder that `apply` or `lower` wrote, read back and verified."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files
from ..disk import LOCK, MADE_BY
from ..errors import FileError, listing
from ..language import parse_spec
from ..models import load_state, load_weights, read_weights
from ..originals import ORIGINALS, WEIGHTS, unlowered_state
from ..reading import read_json
from ..rewrite.apply import apply, lower
from ..rewrite.rewritten import Rewritten
from ..rewrite.unlowering import same_bits
from .check import Check
from .checks import verify_rewritten
from .numeric import sample, tensors

if TYPE_CHECKING:
    import torch

_RUN = """
import importlib.util, sys
for name in ("timm", "vitrewrite", "transformers"):
    sys.modules[name] = None
spec = importlib.util.spec_from_file_location("model", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
import torch
from safetensors.torch import load_file, save_file
inputs = [v for _, v in sorted(load_file(sys.argv[3]).items())]
def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return [t for v in items for t in tensors(v)] if isinstance(value, (dict, list, tuple)) else []
with torch.no_grad():
    outputs = tensors(module.load(sys.argv[2])(*inputs))
save_file({f"{i:04}": t.contiguous().float() for i, t in enumerate(outputs)}, sys.argv[4])
"""


# What has to be in a lock file to make the model again.
_FIELDS = {
    "lowered": bool, "spec_name": str, "spec": str, "model": str, "model_options": dict,
    "weights": str, "seed": int, "files": dict,
}  # fmt: skip


def read_lock(folder: Path) -> dict[str, Any]:
    """The lock file.

    Raises:
        FileError: VR703 if the folder has none, or a broken one.
    """
    try:
        lock = read_json(folder / LOCK)
        if lock["made_by"] == MADE_BY and all(
            isinstance(lock[key], kind) for key, kind in _FIELDS.items()
        ):
            return dict(lock)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    message = f"'{folder}' is no folder that vitrewrite wrote, or was changed since"
    raise FileError("VR703", message)


def load_folder(folder: Path) -> Rewritten:
    """The rewritten model of a folder, with its delta; a lowered one with its weights.

    Raises:
        FileError: VR703, VR704 if its base weights cannot be had again, or what loading raises.
    """
    lock = read_lock(folder)
    if lock["lowered"]:  # what was folded is in no delta
        known = (folder / ORIGINALS).is_file() and not _retrained(folder, lock)
        rewritten = lower(unlowered_folder(folder) if known else _applied(folder, lock))
        load_weights(rewritten.module, folder / WEIGHTS)
        return rewritten
    rewritten = _applied(folder, lock)
    files.load_delta(rewritten, folder / "delta.safetensors")
    return rewritten


def rewritten_folder(folder: Path) -> Rewritten:
    """The rewritten model of a folder that is not lowered.

    Raises:
        FileError: VR705 if it is, VR714 if its weights are not what its delta makes of the base,
            and what `load_folder` raises.
    """
    lock = read_lock(folder)
    if lock["lowered"]:
        raise FileError(
            "VR705", f"'{folder}' is lowered already",
            suggestion="'vitrewrite lower --undo' turns it back",
        )  # fmt: skip
    rewritten = load_folder(folder)
    if _retrained(folder, lock):
        _refuse_others(rewritten, folder / WEIGHTS)
    return rewritten


def _retrained(folder: Path, lock: dict[str, Any]) -> bool:
    """Whether the weights are others than those that were written with the folder."""
    path = folder / WEIGHTS
    return path.is_file() and files._hash(path) != lock["files"].get(WEIGHTS)


def _refuse_others(rewritten: Rewritten, path: Path) -> None:
    """Weights that somebody changed count only if the delta has the change too."""
    own = rewritten.module.state_dict()
    found = read_weights(path)
    odd = [k for k in sorted(own.keys() | found.keys())
           if k not in own or k not in found or not same_bits(own[k], found[k])]  # fmt: skip
    if odd:
        raise FileError(
            "VR714",
            f"'{path}' was changed since, and not as 'delta.safetensors' was: {listing(odd, 3)}",
            suggestion="save what was trained with vitrewrite.save, into the delta",
        )


def unlowered_folder(folder: Path) -> Rewritten:
    """The model that a lowered folder was made from, bit for bit, out of that folder alone.

    Raises:
        FileError: VR703; VR706 if it is not lowered; VR704 if its model cannot be built again;
            VR711, VR713 or VR714 if its weights or originals are damaged; VR720 if they are not
            those of the lock file.
    """
    lock = read_lock(folder)
    if not lock["lowered"]:
        raise FileError(
            "VR706", f"'{folder}' is not lowered, so there is nothing to turn back",
            suggestion="leave out --undo to lower it",
        )  # fmt: skip
    state, _ = unlowered_state(folder)
    rewritten = _applied(folder, lock, state)
    load_state(rewritten.module, state, str(folder))
    restored = all(same_bits(v, state[k]) for k, v in rewritten.module.state_dict().items())
    if not restored or files.fingerprint(rewritten) != lock.get("base_fingerprint"):
        message = f"the weights in '{folder}' are not those that its {LOCK} is about"
        raise FileError("VR720", message)
    return rewritten


def _applied(
    folder: Path, lock: dict[str, Any], state: dict[str, torch.Tensor] | None = None
) -> Rewritten:
    """The spec of a lock file, carried out again; with `state`, on the base weights in that."""
    if lock["weights"] == "given":
        raise FileError(
            "VR704",
            f"'{folder}' was made from a model object, which cannot be built again from the folder",
            suggestion="apply the spec in Python and use vitrewrite.load",
        )
    spec = parse_spec(lock["spec"] + "\n")
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in lock["model_options"].items()}
    rewritten = apply(
        spec,
        lock["model"],
        weights=lock["weights"],
        seed=lock["seed"],
        model_options=options,
        allocations=lock.get("allocations"),
        state=state,
    )
    rewritten.result.spec = spec.renamed(lock["spec_name"])
    rewritten.trained = True
    return rewritten


def verify_folder(folder: Path, *, compiled: bool = False) -> list[Check]:
    """All checks of the model in a folder, and that its files are what they were."""
    lock = read_lock(folder)
    checks = [_unchanged(folder, lock)]
    rewritten = load_folder(folder)
    checks += verify_rewritten(rewritten, compiled=compiled)
    if (folder / WEIGHTS).is_file():
        checks.append(_clean_interpreter(folder, rewritten))
    return checks


def _unchanged(folder: Path, lock: dict[str, Any]) -> Check:
    changed = [
        name
        for name, digest in lock["files"].items()
        if not (folder / name).is_file() or files._hash(folder / name) != digest
    ]
    # Trained weights replace those that apply wrote; everything else must stay.
    odd = [n for n in changed if not n.endswith(".safetensors")]
    return Check("files as they were written", not odd, f"{len(odd)} changed", ", ".join(odd))


def _clean_interpreter(folder: Path, rewritten: Rewritten) -> Check:
    """Runs `model.py` where neither vitrewrite nor timm can be imported."""
    import torch
    from safetensors.torch import load_file, save_file

    inputs = sample(rewritten)
    with tempfile.TemporaryDirectory() as temporary:
        given, result = Path(temporary, "inputs"), Path(temporary, "output")
        save_file({f"{i:02}": v for i, v in enumerate(inputs)}, given)
        command = [sys.executable, "-I", "-B", "-c", _RUN, str(folder / "model.py")]
        command += [str(folder / WEIGHTS), str(given), str(result)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            return Check("model.py runs alone", False, reason)
        outputs = [value for _, value in sorted(load_file(result).items())]
    with torch.no_grad():
        plain = tensors(rewritten.module.eval()(*inputs))
    error = max(float((a - b).abs().max()) for a, b in zip(plain, outputs, strict=True))
    return Check("model.py runs alone and gives the same output", error == 0, error)
