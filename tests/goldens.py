"""Golden cases: tensors from running the original authors' code, and how to compare with them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm.models.vision_transformer
import torch
from safetensors.torch import load_file

FOLDER = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Case:
    """One golden case: `case.json`, its tensors, and the base model they belong to."""

    name: str
    about: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    def base(self) -> torch.nn.Module:
        """The base model with its weights, in eval mode."""
        kwargs = self.about["base"]["kwargs"]
        model = timm.models.vision_transformer.VisionTransformer(**kwargs)
        state = load_file(FOLDER / self.about["base_file"])
        model.load_state_dict({k.removeprefix("base."): v for k, v in state.items()})
        return model.eval()

    def close(self, actual: torch.Tensor, name: str) -> None:
        """Asserts that `actual` is the golden tensor, within the case's own tolerance."""
        tolerance = self.about["tolerance"]
        if "output" in tolerance:
            tolerance = {"rtol": 0, "atol": tolerance["output"]}
        torch.testing.assert_close(actual, self.tensors[name], **tolerance)

    def gradients_close(self, gradients: dict[str, torch.Tensor]) -> None:
        """Asserts every `grad.*`; zero gradients are noise on the scale of the largest one."""
        tolerance = self.about["tolerance"]
        if "grad" in tolerance:  # "1e-3 relative to max abs"
            tolerance = {"rtol": 1e-3, "atol": float(tolerance["grad"].split()[0])}
        names = [k.removeprefix("grad.") for k in self.tensors if k.startswith("grad.")]
        assert names
        largest = max(float(self.tensors[f"grad.{n}"].abs().max()) for n in names)
        for name in names:
            torch.testing.assert_close(
                gradients[name],
                self.tensors[f"grad.{name}"],
                rtol=tolerance["rtol"],
                atol=tolerance["atol"] * max(1.0, largest),
                msg=lambda m, name=name: f"{name}: {m}",
            )


def case(name: str) -> Case:
    """Loads a case."""
    folder = FOLDER / name
    about = json.loads((folder / "case.json").read_text())
    return Case(name, about, load_file(folder / "tensors.safetensors"))
