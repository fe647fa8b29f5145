"""Measures a model on data: what `vitrewrite profile` does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ..anatomy import analyse
from ..data import Batch, Preprocessing, batches, open_data
from ..emission.realise import realise
from ..language.model import Spec
from ..rewrite.apply import Request
from ..tracing import trace
from .calls import wanted_by
from .listing import candidates
from .profile import SENSITIVITY, Profile, squared_gradients

DEFAULTS: dict[str, Any] = {"samples": 800, "per": "sample"}
"""How a spec that does not say it is measured: the published rule."""


def measure(
    spec: Spec,
    model: Any = None,
    *,
    data: str | Path,
    weights: str = "random",
    seed: int = 0,
    batch: int = 32,
    device: str = "cpu",
    progress: Callable[[str, float], None] | None = None,
) -> Profile:
    """Sums of squared gradients of a spec's model on training images, in the data's own order.

    Args:
        spec: names the model, and in `sensitive(samples=..., per=...)` how to measure.
        model: a module or a name, if not the spec's own.
        data: as `open_data` takes it.
        weights: of a model by name.
        seed: of random weights.
        batch: images per batch; a step of its own with `per=batch`.
        device: where to compute.
        progress: told what is done, and which share of it is.

    Raises:
        VitrewriteError: for what is wrong with the spec, the model or the data.
    """
    request = Request(spec, model, weights, seed)
    base = trace(request.build(meta=False)).eval()
    listed = candidates(base, analyse(base))
    options = {**DEFAULTS, **(dict(wanted_by(spec)[0].values) if wanted_by(spec) else {})}
    images = open_data(str(data), Preprocessing.of_captured(base)).train
    realise(base)
    base.to(device)
    samples = min(int(options["samples"]), len(images))

    def loaded() -> Iterator[Batch]:
        done = 0
        for found in batches(images, batch, limit=samples):
            yield found.to(torch.device(device))
            done += len(found.labels)
            if progress is not None:
                progress(f"{done} of {samples} images", done / samples)

    names = list(dict.fromkeys(c.parameter for c in listed))
    sums = squared_gradients(base, loaded(), per_sample=options["per"] == "sample", names=names)
    about = {
        "model": request.name, "weights": request.described, "data": str(data),
        "samples": samples, "per": options["per"], "batch": batch,
    }  # fmt: skip
    return Profile({f"{SENSITIVITY}{k}": v.cpu() for k, v in sums.items()}, about)
