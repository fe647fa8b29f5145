"""The procedure of dynamic tuning: a rate for all gates, and a complete model that teaches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from vitrewrite.authoring import Procedure, Run, activity


class RateAndCompleteModel(Procedure):
    """2 (mean g - rate)^2 + CE(complete) + KL(stop(complete) || dynamic) beside CE(dynamic).

    Args:
        rate: share of the patches that is to be active: over the batch, all layers and patches.
        weight: of the loss of the rate.
        complete: whether the other two are there.
    """

    entry = "dynamic"

    def __init__(self, rate: float, weight: float, *, complete: bool) -> None:
        self.rate, self.weight, self.complete = rate, weight, complete

    def terms(self, run: Run, batch: Any, output: Any) -> Mapping[str, torch.Tensor]:
        """The losses of a step, which runs the model twice."""
        logits, gates = output
        found = {"rate": self.weight * (self.mean(run, gates) - self.rate) ** 2}
        if self.complete:
            model: Any = run.module
            whole = model.complete(batch.images)
            smoothing = run.settings.label_smoothing
            found["complete"] = run.task.loss(whole, batch.labels, smoothing=smoothing)
            wanted = whole.detach().log_softmax(dim=-1)
            told = logits.log_softmax(dim=-1)
            found["distillation"] = F.kl_div(told, wanted, reduction="batchmean", log_target=True)
        return found

    def report(self, run: Run) -> Mapping[str, Any]:
        """Rates of all gates over the validation images, beside the target, and their costs."""
        return {"activity": activity(run, self.entry, self.rate)}

    def mean(self, run: Run, gates: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """The share of the patches that is active, with what is always active left out."""
        prefixes = [m.prefix for m in run.inserted("dispatch") if hasattr(m, "prefix")]
        found = [g[:, prefix:].flatten() for g, prefix in zip(gates, prefixes, strict=True)]
        return torch.cat(found).float().mean()
