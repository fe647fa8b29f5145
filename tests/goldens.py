"""Golden cases: tensors from running the original authors' code, and how to compare with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer

from vitrewrite.rewrite.rewritten import Rewritten

FOLDER = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Case:
    """One golden case: `case.json`, its tensors, and the base model they belong to."""

    name: str
    about: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    def base(self) -> torch.nn.Module:
        """The base model with its weights, in eval mode."""
        kwargs, told = self.about["base"]["kwargs"], self.about["base"].get("cls", "")
        if "global_pool='avg', fc_norm=True" in told:
            kwargs = {**kwargs, "global_pool": "avg", "fc_norm": True}
        distilled = "VisionTransformerDistilled" in told
        model: Any = (VisionTransformerDistilled if distilled else VisionTransformer)(**kwargs)
        state = load_file(FOLDER / self.about["base_file"])
        model.load_state_dict({k.removeprefix("base."): v for k, v in state.items()})
        return model.eval()

    def close(self, actual: torch.Tensor, name: str) -> None:
        """Asserts that `actual` is the golden tensor, within the case's own tolerance."""
        tolerance = self.about["tolerance"]
        if "output" in tolerance:
            tolerance = {"rtol": 0, "atol": tolerance["output"]}
        torch.testing.assert_close(actual, self.tensors[name], **tolerance)

    def gradients_of(self, rewritten: Rewritten) -> dict[str, torch.Tensor]:
        """The gradients of (output * probe).sum() in training, named as the delta is."""
        module = rewritten.module.train()
        (module(self.tensors["input"]) * self.tensors["probe"]).sum().backward()
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.data = parameter.grad  # so that `delta` hands out the gradients by site
        return {name: tensor.clone() for name, tensor in rewritten.delta().items()}

    def merged_close(self, state: Mapping[str, torch.Tensor], count: int) -> None:
        """Asserts every `merged.*`, of which there are so many, in the state of a lowered model."""
        names = [k.removeprefix("merged.") for k in self.tensors if k.startswith("merged.")]
        assert len(names) == count
        for name in names:
            self.close(state[name], f"merged.{name}")

    def gradients_close(self, gradients: dict[str, torch.Tensor]) -> None:
        """Asserts every `grad.*`; zero gradients are noise on the scale of the largest one."""
        tolerance = self.about["tolerance"]
        by_tensor = str(tolerance.get("grad", "")).startswith("max|a-b| <= 1e-3*max|b|")
        if "grad" in tolerance and not by_tensor:  # "1e-3 relative to max abs"
            tolerance = {"rtol": 1e-3, "atol": float(tolerance["grad"].split()[0])}
        names = [k.removeprefix("grad.") for k in self.tensors if k.startswith("grad.")]
        assert names
        largest = max(float(self.tensors[f"grad.{n}"].abs().max()) for n in names)
        for name in names:
            expected = self.tensors[f"grad.{name}"]
            bounds: dict[str, Any] = {
                "rtol": 0.0,
                "atol": 1e-3 * float(expected.abs().max()) + 1e-6 * largest,
            }
            if not by_tensor:
                bounds = {"rtol": tolerance["rtol"], "atol": tolerance["atol"] * max(1.0, largest)}
            torch.testing.assert_close(
                gradients[name], expected, **bounds, msg=partial("{}: {}".format, name)
            )


def case(name: str) -> Case:
    """Loads a case."""
    folder = FOLDER / name
    about = json.loads((folder / "case.json").read_text())
    return Case(name, about, load_file(folder / "tensors.safetensors"))
