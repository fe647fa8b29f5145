"""Runs emitted source in an interpreter that has torch and nothing else of ours."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from tests.zoo.subject import Inputs, tensors

_SERVER = """
import importlib.util, sys
for name in ("timm", "vitrewrite", "torchvision", "transformers", "einops"):
    sys.modules[name] = None
import torch
torch.set_num_threads(1)
for line in sys.stdin:
    folder = line.strip()
    try:
        spec = importlib.util.spec_from_file_location("emitted", folder + "/model.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        given = torch.load(folder + "/given.pt", weights_only=True)
        model = module.build().eval()
        model.load_state_dict(given["state"])
        torch.manual_seed(7)
        with torch.no_grad():
            result = model(*given["args"], **given["kwargs"])
        torch.save(result, folder + "/result.pt")
        print("done", flush=True)
    except Exception as error:
        print("failed " + repr(error).replace(chr(10), " ")[:300], flush=True)
"""


class Clean:
    """The interpreter; one for many models, since torch is slow to import."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, text: str, state: dict[str, Any], inputs: Inputs) -> dict[str, torch.Tensor]:
        """What the source makes of the inputs, with these weights.

        Raises:
            RuntimeError: if it does not run there.
        """
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "model.py").write_text(text)
            args = tuple(v for k, v in inputs.items() if not k)
            kwargs = {k: v for k, v in inputs.items() if k}
            plain = {k: v.detach() for k, v in state.items()}
            given = {"state": plain, "args": args, "kwargs": kwargs}
            torch.save(given, folder / "given.pt")
            answer = self._ask(name)
            if answer != "done":
                raise RuntimeError(f"the emitted source in a clean interpreter: {answer}")
            return tensors(torch.load(folder / "result.pt", weights_only=True))

    def _ask(self, folder: str) -> str:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _SERVER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        process, self._process = (
            self._process,
            None,
        )
        print(folder, file=process.stdin, flush=True)
        answer = process.stdout.readline().strip()  # type: ignore[union-attr]
        self._process = process
        return answer or "it died"
