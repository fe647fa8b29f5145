"""Measurements on a model, as a file: what `vitrewrite profile` writes and specs use."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..errors import ProfileError
from .listing import Candidate

SENSITIVITY = "sensitivity."
"""Prefix of sums of squared gradients, by parameter name."""


@dataclass(frozen=True)
class Profile:
    """Named measurements and how they were made.

    Attributes:
        tensors: by name, such as `sensitivity.blocks.0.attn.qkv.weight`.
        about: how many samples, which rule, the model's fingerprint.
    """

    tensors: Mapping[str, torch.Tensor]
    about: Mapping[str, Any] = field(default_factory=dict)

    def sensitivities(self, candidates: Sequence[Candidate]) -> dict[str, torch.Tensor]:
        """Squared gradients by parameter name, checked against the model's candidates.

        Raises:
            ProfileError: VR760 if parameters are missing or shaped otherwise, VR762 for numbers
                that are not finite.
        """
        found = {}
        for name in dict.fromkeys(c.parameter for c in candidates):
            tensor = self.tensors.get(f"{SENSITIVITY}{name}")
            ends = [c.rows[1] if c.rows else c.shape[0] for c in candidates if c.parameter == name]
            if tensor is None or tensor.shape[0] != max(ends):
                shown = "missing" if tensor is None else f"shaped {list(tensor.shape)}"
                raise ProfileError(
                    "VR760", f"the profile is of another model: {name} is {shown}",
                    suggestion="run 'vitrewrite profile' on this model",
                )  # fmt: skip
            if not bool(tensor.isfinite().all()):
                raise ProfileError("VR762", f"the sensitivities of {name} are not finite")
            found[name] = tensor
        return found

    def save(self, path: str | Path) -> None:
        """Writes the file, all or nothing."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.tmp")
        metadata = {"vitrewrite": json.dumps(dict(self.about))}
        save_file({k: v.contiguous() for k, v in self.tensors.items()}, temporary, metadata)
        temporary.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Reads a file that `save` wrote.

        Raises:
            ProfileError: VR763 if it cannot be read.
        """
        try:
            with safe_open(str(path), "pt") as file:
                about = json.loads((file.metadata() or {}).get("vitrewrite", "{}"))
                return cls({k: file.get_tensor(k) for k in file.keys()}, about)  # noqa: SIM118
        except (OSError, SafetensorError, ValueError) as error:
            raise ProfileError("VR763", f"the profile '{path}' cannot be read: {error}") from error


def squared_gradients(
    model: nn.Module, batches: Any, *, per_sample: bool, names: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Sums of squared gradients of the cross-entropy, by parameter name.

    Published: one sample per step. As released: one batch per step, the gradient of the batch's
    mean loss. The two differ, a sum of squares or a square of means.

    Args:
        model: in eval mode, so that nothing is dropped and the result is not random.
        batches: pairs of images and labels.
        per_sample: whether each sample is a step of its own.
        names: the parameters to measure.

    Raises:
        ProfileError: VR762 for a loss that is not finite, VR764 for a parameter without gradient,
            VR765 without any batch.
    """
    parameters = {n: p for n, p in model.named_parameters() if n in set(names)}
    wanted = list(parameters.values())
    sums = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in parameters.items()}
    count = 0
    for images, labels in batches:
        size = 1 if per_sample else len(labels)
        for x, y in zip(images.split(size), labels.split(size), strict=True):
            loss = nn.functional.cross_entropy(model(x), y)
            if not bool(loss.isfinite()):
                raise ProfileError("VR762", f"the loss is {loss.item()} after {count} samples")
            gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
            for (name, total), gradient in zip(sums.items(), gradients, strict=True):
                if gradient is None:
                    raise ProfileError("VR764", f"the loss does not depend on {name}")
                total.addcmul_(gradient.float(), gradient.float())
            count += len(y)
    if not count:
        raise ProfileError("VR765", "there is no sample to measure with")
    return sums
