"""What leaves blocks for training images, one vector each: for procedures that choose by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..data import batches
from .run import Run


@torch.no_grad()
def features(
    run: Run, blocks: Sequence[str], samples: int
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The first token that leaves each block, in eval mode, of training images without transforms.

    Args:
        run: whose `rewritten` and images.
        blocks: their roles, such as `blocks[11]`; all yield tokens [batch, tokens, channels].
        samples: how many images, drawn by the run's seed.

    Returns:
        By role [images, channels] in float32 on the CPU, and the labels of the images.
    """
    device = next(run.module.parameters()).device
    module = run.frozen(run.rewritten.module)
    found: dict[str, list[torch.Tensor]] = {role: [] for role in blocks}
    for block in run.rewritten.result.anatomy.blocks:
        if block.role in found:
            keep = _keeps(found[block.role])
            module.get_submodule(block.path).register_forward_hook(keep)
    labels = []
    for batch in batches(run.data.train, run.settings.batch, seed=run.seed, limit=samples):
        module(batch.images.to(device))
        labels.append(batch.labels)
    return {role: torch.cat(rows) for role, rows in found.items()}, torch.cat(labels)


def _keeps(rows: list[torch.Tensor]) -> Any:
    """A hook that keeps the first token of what a block yields, or yields first."""

    def keep(_module: nn.Module, _given: Any, made: Any) -> None:
        tokens = made[0] if isinstance(made, (tuple, list)) else made
        rows.append(tokens[:, 0].float().cpu())

    return keep
