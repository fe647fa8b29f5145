"""Measures a model on data: what `vitrewrite profile` does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..anatomy import analyse
from ..anatomy.fingerprint import trunk_fingerprint
from ..anatomy.sites import Anatomy
from ..data import Batch, Preprocessing, batches, open_data
from ..data.images import Images
from ..emission.realise import realise
from ..errors import ProfileError
from ..language.model import Spec
from ..models.request import Request
from ..rewrite.passes import method_of
from ..sensitivity.calls import wanted_by, way
from ..sensitivity.listing import candidates
from ..sensitivity.profile import ACTIVATION, SENSITIVITY, Profile
from ..tasks import task_for
from ..tasks.supervision import supervised
from .activations import ActivationRecorder, Activations, collect, selected
from .gradients import squared_gradients
from .heads import with_new_head


def measure(
    spec: Spec,
    model: Any = None,
    *,
    data: str | Path,
    example: Any = None,
    weights: str = "random",
    seed: int = 0,
    batch: int = 32,
    device: str = "cpu",
    activations: Activations | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> Profile:
    """Measures a spec's model on training images, shuffled: folders come class by class.

    Sums of squared gradients, and activations if they are asked for. Only activations if the spec
    has no `sensitive(...)`.

    Args:
        spec: names the model, and in `sensitive(samples=..., per=...)` how to measure.
        model: a module or a name, if not the spec's own.
        data: as `open_data` takes it.
        example: what the model is called with, if it does not say so itself.
        weights: of a model by name.
        seed: of random weights, and of the order of images.
        batch: images per batch; a step of its own with `per=batch`.
        device: where to compute.
        activations: which to keep.
        progress: told what is done, and which share of it is.

    Raises:
        VitrewriteError: for what is wrong with the spec, the model or the data.
    """
    request = Request(supervised(spec, model), model, weights, seed)
    base = request.traced(example, meta=False)[1].eval()
    job = _Job(base, analyse(base), str(data), batch, seed, torch.device(device), progress)
    about: dict[str, Any] = {
        "model": request.name, "weights": request.described, "data": str(data), "batch": batch,
        "fingerprint": trunk_fingerprint(base, job.anatomy),
    }  # fmt: skip
    tensors: dict[str, torch.Tensor] = {}
    for part in (
        job.activations(activations) if activations is not None else None,
        job.sensitivities(spec) if wanted_by(spec) or activations is None else None,
    ):
        if part is not None:
            tensors |= part.tensors
            about |= part.about
    return Profile(tensors, about)


def _way(spec: Spec) -> dict[str, Any]:
    """How a spec wants to be measured: its selectors say so, else its passes.

    Raises:
        ProfileError: VR769 if its selectors want it in several ways.
    """
    found = wanted_by(spec)
    first = way(found[0] if found else None)
    methods = () if found else (method_of(clause) for clause in spec.clauses if clause.use)
    if most := max((method.measured_on for method in methods), default=0):
        first["samples"] = most
    for call in found[1:]:
        if way(call) != first:
            raise ProfileError(
                "VR769",
                "two selectors of the spec want to be measured in different ways",
                span=call.span,
                notes=[f"the first: {found[0]}"],
                suggestion="give them the same samples= and per=",
            )
    return first


@dataclass(frozen=True)
class _Job:
    """A model on data; each measurement gives the part of a profile."""

    base: nn.Module
    anatomy: Anatomy
    data: str
    batch: int
    seed: int
    device: torch.device
    progress: Callable[[str, float], None] | None

    def activations(self, wanted: Activations) -> Profile:
        """Values at sites, by a walk over the graphs."""
        points = selected(wanted.sites, self.anatomy, self.base)
        recorder = ActivationRecorder(self.base.to(self.device), points, self.anatomy.stream.layout)
        images = open_data(self.data, Preprocessing.of(self.base), measured=False).train
        wanted = replace(wanted, samples=min(wanted.samples, len(images)))
        found = (b.images for b in self._batches(images, wanted.samples, "activations"))
        tensors, same = collect(recorder, found, wanted)
        about = {**asdict(wanted), "same": same}
        return Profile({f"{ACTIVATION}{k}": v for k, v in tensors.items()}, {"activations": about})

    def sensitivities(self, spec: Spec) -> Profile:
        """Sums of squared gradients, by the printed classes."""
        listed = candidates(self.base, self.anatomy)
        if not listed:
            raise ProfileError("VR766", f"{self.anatomy.model} has no blocks to measure")
        options = _way(spec)
        found = open_data(self.data, Preprocessing.of(self.base), measured=False)
        model = with_new_head(spec, self.base, self.anatomy, self.seed)
        task, images = task_for(found, model, self.anatomy), found.train
        realise(model)
        model.to(self.device)
        samples = min(int(options["samples"]), len(images))
        names = dict.fromkeys(c.parameter for c in listed)
        if not wanted_by(spec):  # for a pass that starts from what matters in the model
            patches = f"{self.anatomy.patch_embed}."
            convs = (c.path for c in self.anatomy.convs if c.path.startswith(patches))
            names |= dict.fromkeys(f"{path}.weight" for path in convs)
        left = dict(model.named_parameters())
        sums = squared_gradients(
            model,
            self._batches(images, samples, "gradients"),
            per_sample=options["per"] == "sample",
            names=[name for name in names if name in left],
            loss=lambda output, labels, done: task.loss(output, labels, seed=done),
        )
        for name in names.keys() - left.keys():  # a norm that the new head does not read
            sums[name] = torch.zeros_like(self.base.get_parameter(name), dtype=torch.float32)
        tensors = {f"{SENSITIVITY}{k}": v.cpu() for k, v in sums.items()}
        return Profile(tensors, {"samples": samples, "per": options["per"], "way": options})

    def _batches(self, images: Images, samples: int, what: str) -> Iterator[Batch]:
        done = 0
        for found in batches(images, self.batch, seed=self.seed, limit=samples):
            yield found.to(self.device)
            done += len(found.labels)
            if self.progress is not None:
                self.progress(f"{what}: {done} of {samples} images", done / samples)
