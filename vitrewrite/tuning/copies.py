"""Copies of what is trained: the moving average over steps, and the best that was evaluated.

They are named as the tensors of a checkpoint are, lie in `run.copies`, and are in every checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .checkpoints import own_tensors
from .run import Run
from .schedules import KEPT

AVERAGE, BEST = "average", "best"
KNOWN = "tuning.best"  # in `run.memory`, which passes share


class Average:
    """timm's moving average (`ModelEmaV3`) of the tensors that are not the base's.

    Args:
        run: with a phase whose model is on the device.
        sharded: whether this process has parts of tensors, which are averaged one by one.
    """

    def __init__(self, run: Run, *, sharded: bool) -> None:
        import timm.utils

        library: Any = timm.utils
        self.run = run
        own = own_tensors(run, run.module)
        self.live = nn.ParameterList(nn.Parameter(t, requires_grad=False) for t in own.values())
        self.timms = library.ModelEmaV3(
            self.live, run.settings.ema, use_warmup=run.settings.ema_warmup, foreach=not sharded
        )
        run.copies[AVERAGE] = dict(zip(own, self.timms.module.parameters(), strict=True))

    def update(self) -> None:
        """After a step."""
        self.timms.update(self.live, self.run.step)


class Best:
    """The best evaluation of a phase so far, in `run.memory`, and its tensors if it is reported."""

    def __init__(self, run: Run) -> None:
        self.run, self.limit = run, run.settings.stop_after
        self.kept = run.settings.report == BEST

    def evaluated(self) -> None:
        """The model of this moment was evaluated."""
        run, score = self.run, self.run.score
        known = run.memory.get(KNOWN)
        if known is not None and (score is None or score <= known["score"]):
            run.memory[KNOWN] = {**known, "since": known["since"] + 1}
            return
        run.memory[KNOWN] = {
            "score": score, "step": run.step, "results": dict(run.results), "since": 0,
        }  # fmt: skip
        if self.kept:
            own = own_tensors(run, run.module)
            run.copies[BEST] = {name: tensor.clone() for name, tensor in own.items()}

    @property
    def stops(self) -> bool:
        """Whether too many evaluations found nothing better."""
        known = self.run.memory.get(KNOWN)
        return self.limit is not None and known is not None and known["since"] >= self.limit


def forget(run: Run) -> None:
    """A new phase has no copies of its tensors, and remembers no evaluations."""
    run.copies.clear()
    for key in (KNOWN, KEPT):
        run.memory.pop(key, None)


def settle(run: Run) -> dict[str, torch.Tensor]:
    """The tensors that a phase ends with; `run.results` are those of their evaluation."""
    if BEST in run.copies:
        run.results = dict(run.memory[KNOWN]["results"])
    found = run.copies.get(BEST) or run.copies.get(AVERAGE)
    return found or own_tensors(run, run.module)


def reported(run: Run) -> dict[str, Any]:
    """Which evaluation a run ended with, for its report, where it may not be the last one."""
    if run.settings.report != BEST or KNOWN not in run.memory:
        return {}
    return {"reported": {"evaluation": BEST, "step": run.memory[KNOWN]["step"]}}


@contextmanager
def averaged(run: Run) -> Iterator[None]:
    """The model has its average in the body, if there is one."""
    if AVERAGE not in run.copies:
        yield
        return
    _exchange(run)
    try:
        yield
    finally:
        _exchange(run)


@torch.no_grad()
def _exchange(run: Run) -> None:
    _gathered_anew(run.module)
    average = run.copies[AVERAGE]
    for name, tensor in own_tensors(run, run.module).items():
        kept = tensor.clone()
        tensor.copy_(average[name])
        average[name].copy_(kept)


def _gathered_anew(module: nn.Module) -> None:
    """Has FSDP2 give back what it gathered: it would not see that the parts change."""
    for each in module.modules():
        if hasattr(each, "reshard"):
            each.reshard()  # type: ignore[operator]
