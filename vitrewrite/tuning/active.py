"""How many tokens pass the gates of a model, over its validation images."""

from __future__ import annotations

from typing import Any

import torch

from ..data import evaluation_batches
from ..rewrite.activity import costs_of, gates_of
from .run import Run


@torch.no_grad()
def activity(run: Run, entry: str, target: float) -> dict[str, Any]:
    """Rates of the gates in evaluation, and what the lowered model costs the images, one by one.

    Args:
        run: whose `rewritten`, when it is trained.
        entry: of the model, that yields `(output, gates)`, gates [batch, tokens].
        target: share of the patches that is to be active.

    Returns:
        `target`, `overall` (the mean over gates), `layers` (the rate of each, by site), and `macs`,
        the mean over images. Tokens that are always active are left out of the rates.
    """
    module: Any = run.frozen(run.rewritten.module)
    device = next(module.parameters()).device
    gates = gates_of(run.rewritten.result.editor)
    prefixes = [int(getattr(insertion.module, "prefix", 0)) for insertion, _ in gates]
    counts, patches = [], [0] * len(gates)
    batch = run.settings.evaluation_batch
    for each in evaluation_batches(run.data.val, batch, workers=run.settings.workers):
        _, found = getattr(module, entry)(each.images.to(device))
        own = [g[:, prefix:] for g, prefix in zip(found, prefixes, strict=True)]
        patches = [g.shape[1] for g in own]
        counts.append(torch.stack([(g > 0).sum(1) for g in own], dim=1)[each.labels >= 0].cpu())
    active = torch.cat(counts)
    rates = active.double().mean(0) / torch.tensor(patches, dtype=torch.float64)
    roles = [insertion.site.role for insertion, _ in gates]
    return {
        "target": target,
        "overall": round(float(rates.mean()), 4),
        "layers": {role: round(float(r), 4) for role, r in zip(roles, rates, strict=True)},
        "macs": round(float(costs_of(run.rewritten, active, patches).mean())),
    }
