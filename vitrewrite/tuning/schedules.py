"""Learning rates: timm's schedules over steps, each for the groups that follow it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .run import Run

PLATEAU = "plateau"
KEPT = "tuning.plateau"  # in `run.memory`, which passes share


class _Followers:
    """The groups of an optimiser that follow one schedule; its own after a checkpoint, too."""

    def __init__(self, optimiser: torch.optim.Optimizer, schedule: str, floor: float) -> None:
        self.optimiser, self.key = optimiser, (schedule, floor)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """As an optimiser has them."""
        return [g for g in self.optimiser.param_groups if (g["schedule"], g["floor"]) == self.key]


class Rates:
    """The learning rates of a phase, functions of the number of the step.

    Only a plateau hangs on what came before: on evaluations, which `run.memory` remembers.
    """

    def __init__(self, run: Run, optimiser: torch.optim.Optimizer) -> None:
        self.run, self.optimiser = run, optimiser
        keys = dict.fromkeys((g["schedule"], g["floor"]) for g in optimiser.param_groups)
        self.schedules = [_schedule(run, _Followers(optimiser, *key), *key) for key in keys]
        self.plateau = _plateau(run) if any(s == PLATEAU for s, _ in keys) else None

    def set(self) -> None:
        """Those of the step that comes next."""
        for schedule in self.schedules:
            schedule.step_update(self.run.step)
        if self.plateau is not None and _factor(self.plateau) < 1:
            for group in self.optimiser.param_groups:
                if group["schedule"] == PLATEAU:
                    floor = group["floor"] * group["lr_scale"]
                    group["lr"] = max(floor, group["lr"] * _factor(self.plateau))

    def evaluated(self, score: float | None) -> None:
        """An evaluation found a score, the higher the better."""
        if self.plateau is None or score is None:
            return
        with warnings.catch_warnings():  # of a schedule that is asked before the first step
            warnings.simplefilter("ignore")
            self.plateau.step(score)
        state = {k: v for k, v in self.plateau.state_dict().items() if isinstance(v, (int, float))}
        self.run.memory[KEPT] = {**state, "factor_now": _factor(self.plateau)}


def _schedule(run: Run, followers: Any, kind: str, floor: float) -> Any:
    """One of timm's, in steps."""
    import timm.scheduler

    timms: Any = timm.scheduler
    settings = run.settings
    warmup = round(settings.warmup_epochs * run.per_epoch)
    shared: dict[str, Any] = {
        "warmup_t": warmup, "warmup_lr_init": settings.warmup_lr, "t_in_epochs": False,
    }  # fmt: skip
    for group in followers.param_groups:
        group["lr"] = group["peak"]
    over = max(1, run.steps)
    if kind == "cosine":
        return timms.CosineLRScheduler(followers, over, lr_min=floor, **shared)
    if kind == "poly":
        return timms.PolyLRScheduler(followers, over, power=settings.power, lr_min=floor, **shared)
    every = round(settings.decay_epochs * run.per_epoch) if kind == "step" else over
    rate = settings.decay_rate if kind == "step" else 1.0
    return timms.StepLRScheduler(followers, max(1, every), rate, warmup_prefix=False, **shared)


def _plateau(run: Run) -> torch.optim.lr_scheduler.ReduceLROnPlateau:
    """torch's rule over a rate of one: what it makes of that is the factor for all."""
    stand_in = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    settings = run.settings
    found = torch.optim.lr_scheduler.ReduceLROnPlateau(
        stand_in, "max", settings.decay_rate, settings.patience
    )
    if known := run.memory.get(KEPT):
        found.load_state_dict({k: v for k, v in known.items() if k != "factor_now"})
        stand_in.param_groups[0]["lr"] = known["factor_now"]
    return found


def _factor(plateau: torch.optim.lr_scheduler.ReduceLROnPlateau) -> float:
    return float(plateau.optimizer.param_groups[0]["lr"])
