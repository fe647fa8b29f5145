"""Measures how long stitches take, each as it would be taken out."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from ..editing.extracting import extracted
from ..emission.realise import realise
from ..rewrite.lowering import lowered_tree
from ..rewrite.rewritten import Rewritten
from ..tracing.unit import duplicate
from .latencies import Latencies
from .timing import WARM_UP, timed

Progress = Callable[[str, float], None]


@torch.no_grad()
def latencies_of(
    rewritten: Rewritten,
    device: torch.device,
    *,
    batch: int,
    rounds: int,
    progress: Progress = lambda what, share: None,
) -> Latencies:
    """Runs all stitches of a model in turn, and takes the median of each.

    Args:
        rewritten: what a spec made that stitches models; it is not changed.
        device: where to run them.
        batch: images of each run.
        rounds: how many runs of each count; those that warm up do not.
        progress: told what is done, and which share of the whole.
    """
    space = rewritten.measures.stitches
    assert space is not None
    count = len(space.stitches)
    total, done = count * (rounds + WARM_UP + 1), 0

    def tick() -> None:
        nonlocal done
        done += 1
        progress("timing stitches", done / total)

    pool: dict[str, nn.Parameter] = {}
    steps = {}
    images = tuple(
        torch.zeros(batch, *value.shape[1:], dtype=value.dtype, device=device)
        for value in rewritten.result.example
    )
    for number in range(count):
        steps[str(number)] = partial(_deployed(rewritten, number, device, pool), *images)
        tick()
    times = timed(steps, rounds, device, tick)
    ms = tuple(round(1000 * statistics.median(times[str(n)]), 6) for n in range(count))
    return Latencies(ms, batch, rounds, str(device), torch.get_num_threads())


def _deployed(
    rewritten: Rewritten, number: int, device: torch.device, pool: dict[str, nn.Parameter]
) -> Any:
    """A stitch with all folded; matrices are those of the stitches before, which have the same."""
    root = lowered_tree(rewritten, stitch=number)[0]
    model = extracted(root, number)
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def shared(old: nn.Parameter) -> nn.Parameter:
        known = pool.get(names[id(old)])
        if known is not None and known.shape == old.shape:
            return known
        made = nn.Parameter(old.detach().to(device), requires_grad=False)
        if old.dim() > 1:
            pool[names[id(old)]] = made
        return made

    made = duplicate(model, shared, lambda b: b.to(device)).eval()
    realise(made)
    return made
