"""Parameter groups, learning rates and gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..errors import TuneError
from ..language.settings import WITH_MOMENTUM, Settings
from .procedure import ParameterGroup
from .run import Run
from .scales import Scale, scales


def create(run: Run) -> torch.optim.Optimizer:
    """The optimiser of a phase.

    Every group becomes several: tensors of one dimension (biases, norms, scales) have no decay, and
    each scale of the settings has a group.

    Raises:
        TuneError: VR855 if nothing is trained.
    """
    settings = run.settings
    groups = [dict(group) for group in _grouped(run)]
    if not groups:
        raise TuneError(
            "VR855",
            f"nothing is trained in phase '{run.phase.name}'",
            suggestion="add a clause such as 'train head' to the spec",
        )
    import timm.optim

    make: Any = timm.optim.create_optimizer_v2
    more = {"momentum": settings.momentum} if settings.optimiser in WITH_MOMENTUM else {}
    name = _TIMMS.get(settings.optimiser, settings.optimiser)
    made: torch.optim.Optimizer = make(groups, name, lr=settings.peak, **more)
    return made


FLAT = " (no decay)"
# timm calls Nesterov's form `sgd`.
_TIMMS = {"sgd": "momentum", "nesterov": "sgd"}


def _grouped(run: Run) -> Iterable[dict[str, Any]]:
    settings, scaled = run.settings, scales(run)
    left = {n: p for n, p in run.module.named_parameters() if p.requires_grad}
    for group in (*run.groups, ParameterGroup("weights", tuple(left))):
        taken = {n: left.pop(n) for n in list(left) if group.takes(n)}
        rate = settings.lr if group.lr is None else group.lr
        peak = rate if group.fixed else settings.scaled(rate)
        floor = settings.min_lr if group.min_lr is None else group.min_lr
        decay = settings.weight_decay if group.weight_decay is None else group.weight_decay
        for (scale, flat), members in _alike(taken, {} if group.fixed else scaled).items():
            yield {
                "params": list(members.values()),
                "names": list(members),
                "name": f"{group.name}{scale}{FLAT if flat else ''}",
                "weight_decay": 0.0 if flat else decay * scale.weight_decay,
                "peak": peak,
                "floor": min(peak, floor),  # no schedule rises
                "schedule": group.schedule or settings.schedule,
                "lr_scale": scale.lr,  # timm's schedules multiply what they set by it
            }


def _alike(
    taken: dict[str, nn.Parameter], scaled: dict[str, Scale]
) -> dict[tuple[Scale, bool], dict[str, nn.Parameter]]:
    """Parameters by their scale, and by whether they have one dimension at most."""
    found: dict[tuple[Scale, bool], dict[str, nn.Parameter]] = {}
    for name, parameter in taken.items():
        key = scaled.get(name, Scale()), parameter.dim() <= 1
        found.setdefault(key, {})[name] = parameter
    return dict(sorted(found.items(), key=lambda item: (-item[0][0].lr, item[0][1])))


class Gradients:
    """Norms of the gradient by group, and what to say when it is not finite."""

    def __init__(self, optimiser: torch.optim.Optimizer) -> None:
        self.groups = optimiser.param_groups
        self.last: dict[str, float] = {}  # norms of the last finite gradient

    def norms(self) -> torch.Tensor:
        """The norms of the groups' gradients, on their device."""
        return torch.stack([_norm(group["params"]).double() for group in self.groups])

    def norm(self, norms: torch.Tensor) -> float:
        """The norm of the whole gradient; remembered by group if it is finite."""
        found = dict(zip((g["name"] for g in self.groups), norms.tolist(), strict=True))
        total = math.hypot(*found.values())
        if math.isfinite(total):
            self.last = found
        return total

    def clip(self, norms: torch.Tensor, settings: Settings) -> None:
        """Scales the gradient down to the largest norm allowed."""
        if settings.clip is None:
            return
        factor = (settings.clip / torch.linalg.vector_norm(norms)).clamp(max=1.0)
        for parameter in (p for group in self.groups for p in group["params"]):
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    def notes(self) -> list[str]:
        """What may explain a loss or gradient that is not finite."""
        odd = [
            name
            for group in self.groups
            for name, p in zip(group["names"], group["params"], strict=True)
            if p.grad is not None and not math.isfinite(float(_norm([p])))
        ]
        notes = [f"not finite: the gradients of {', '.join(odd[:3])}"] if odd else []
        if self.last:
            name, norm = max(self.last.items(), key=lambda item: item[1])
            notes.append(f"in the step before, the largest gradient was that of {name}: {norm:.3g}")
        return notes


def _norm(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    parameters = list(parameters)
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros((), device=parameters[0].device)
    total: Any = torch.nn.utils.get_total_norm(gradients)
    found: torch.Tensor = total.full_tensor() if hasattr(total, "full_tensor") else total
    return found


def rates(optimiser: torch.optim.Optimizer) -> dict[str, float]:
    """The learning rate of each kind of group, as metrics show it."""
    return {g["name"].removesuffix(FLAT): g["lr"] for g in optimiser.param_groups}
