"""A folder that vitrewrite wrote, verified: what is in it, not what is made again."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from ..folder.lock import WEIGHTS, Folder
from ..folder.reading import NONE, Trust, load_folder
from ..folder.writing import model_text
from ..rewrite.rewritten import Rewritten
from ..storage.tensors import read_tensors, write_tensors
from .check import Check
from .checks import verify_rewritten
from .numeric import sample, tensors

SOURCE = "model.py"

_RUN = """
import importlib.util, sys
for name in ("timm", "vitrewrite", "transformers"):
    sys.modules[name] = None
spec = importlib.util.spec_from_file_location("model", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
import torch
from safetensors.torch import load_file, save_file
# Copies lie in memory as a tensor does that no file was read into; kernels round accordingly.
inputs = [v.clone() for _, v in sorted(load_file(sys.argv[3]).items())]
def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return [t for v in items for t in tensors(v)] if isinstance(value, (dict, list, tuple)) else []
with torch.no_grad():
    outputs = tensors(module.load(sys.argv[2])(*inputs))
save_file({f"{i:04}": t.contiguous().float() for i, t in enumerate(outputs)}, sys.argv[4])
"""


def verify_folder(
    path: Path, trust: Trust = NONE, *, compiled: bool = False, graphs: bool = True
) -> list[Check]:
    """All checks of the model in a folder, whose files are what was written.

    Args:
        path: the folder.
        trust: what it may do.
        compiled: whether to compare with inductor's code too.
        graphs: whether to export and compile it at all.

    Raises:
        FileError: VR715 for every file that was changed, and what `load_folder` raises: of a
            folder that is damaged there is nothing to say about the model.
    """
    folder = Folder.open(path)
    count = folder.check()
    rewritten = load_folder(path, trust)
    checks = [Check(f"{count} files as they were written", True, "0 changed")]
    checks += _contents(folder, rewritten)
    checks += verify_rewritten(rewritten, compiled=compiled, graphs=graphs, judge=True)
    checks += _source(folder, rewritten, trust)
    return checks


def _contents(folder: Folder, rewritten: Rewritten) -> list[Check]:
    """What is in the weights file against the model that is checked from here on."""
    if not folder.has(WEIGHTS):
        return []
    from ..rewrite.unlowering import same_bits

    found = read_tensors(folder.path / WEIGHTS, digest=folder.digest(WEIGHTS)).tensors
    own = rewritten.module.state_dict()
    odd = [
        k
        for k in own.keys() | found.keys()
        if k not in own or k not in found or not same_bits(own[k], found[k])
    ]
    name = f"{WEIGHTS} is the model that is checked"
    return [Check(name, not odd, f"{len(odd)} others", ", ".join(sorted(odd)[:3]))]


def _source(folder: Folder, rewritten: Rewritten, trust: Trust) -> list[Check]:
    """`model.py` as it is in the folder: what the compiler prints, and runs alone.

    It is code of somebody, so it runs only if it is what we would write, or is trusted.
    """
    text = folder.read(SOURCE)
    printed = model_text(rewritten).encode()
    if text != printed and not trust.code:
        place = _first_difference(text.decode("utf-8", "replace"), printed.decode())
        note = "not run, since it is not; --trust runs it"
        return [Check(f"{SOURCE} is what vitrewrite prints", False, place, note)]
    checks = [] if trust.code else [Check(f"{SOURCE} is what vitrewrite prints", True, "equal")]
    if folder.has(WEIGHTS):
        checks.append(_clean_interpreter(folder, bytes(text), rewritten))
    return checks


def _first_difference(text: str, printed: str) -> str:
    pairs = zip([*text.splitlines(), None], [*printed.splitlines(), None], strict=False)
    line = next((i for i, (a, b) in enumerate(pairs, 1) if a != b), 1)
    return f"line {line} differs"


def _clean_interpreter(folder: Folder, text: bytes, rewritten: Rewritten) -> Check:
    """Runs `model.py` where neither vitrewrite nor timm can be imported."""
    inputs = sample(rewritten)
    with tempfile.TemporaryDirectory() as temporary:
        source, given, result = (Path(temporary, n) for n in (SOURCE, "inputs", "output"))
        source.write_bytes(text)  # what was read and checked, whatever happens to the file
        write_tensors(given, {f"{i:02}": v for i, v in enumerate(inputs)})
        command = [sys.executable, "-I", "-B", "-c", _RUN, str(source)]
        command += [str(folder.path / WEIGHTS), str(given), str(result)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            return Check(f"{SOURCE} runs alone", False, reason)
        outputs = [value for _, value in sorted(read_tensors(result).tensors.items())]
    with torch.no_grad():
        plain = tensors(rewritten.module.eval()(*inputs))
    error = max(float((a - b).abs().max()) for a, b in zip(plain, outputs, strict=True))
    return Check(f"{SOURCE} runs alone and gives the same output", error == 0, error)
