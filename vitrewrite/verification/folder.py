"""A folder that `apply` or `lower` wrote, read back and verified."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .. import files
from ..disk import LOCK, MADE_BY
from ..errors import FileError
from ..language import parse_spec
from ..models import load_weights
from ..rewrite.apply import apply, lower
from ..rewrite.rewritten import Rewritten
from .check import Check
from .checks import verify_rewritten
from .numeric import sample, tensors

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
        lock = json.loads((folder / LOCK).read_text(encoding="utf-8"))
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
    )
    rewritten.result.spec = spec.renamed(lock["spec_name"])
    rewritten.trained = True
    if lock["lowered"]:  # what was folded is in no delta
        rewritten = lower(rewritten)
        load_weights(rewritten.module, folder / "weights.safetensors")
    else:
        files.load_delta(rewritten, folder / "delta.safetensors")
    return rewritten


def verify_folder(folder: Path, *, compiled: bool = False) -> list[Check]:
    """All checks of the model in a folder, and that its files are what they were."""
    lock = read_lock(folder)
    checks = [_unchanged(folder, lock)]
    rewritten = load_folder(folder)
    checks += verify_rewritten(rewritten, compiled=compiled)
    if (folder / "weights.safetensors").is_file():
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
        command += [str(folder / "weights.safetensors"), str(given), str(result)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            return Check("model.py runs alone", False, reason)
        outputs = [value for _, value in sorted(load_file(result).items())]
    with torch.no_grad():
        plain = tensors(rewritten.module.eval()(*inputs))
    error = max(float((a - b).abs().max()) for a, b in zip(plain, outputs, strict=True))
    return Check("model.py runs alone and gives the same output", error == 0, error)
