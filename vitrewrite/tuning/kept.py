"""Losses of a model that decides in training which tokens it keeps, and a share of them that falls.

Rao et al., "DynamicViT", NeurIPS 2021, equations 12 to 16; Liang et al., "EViT", ICLR 2022.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from ..tasks import logits
from .procedure import ParameterGroup, Procedure
from .watching import Watched

if TYPE_CHECKING:
    from ..data import Batch
    from .run import Run


@dataclass(frozen=True)
class KeptTokens(Procedure):
    """Rates that are met, and scores and tokens as the model has them that prunes nothing.

    Attributes:
        name: of the pass, whose modules with a `predictor` yield decisions [B, N] in training: 1
            for a patch that is kept, 0 for another; `rate` is the share that is to be kept.
        rate: weight of the squared distance of the share of patches that is kept from `rate`.
        teacher: weight of the divergence of the scores from those of the base.
        tokens: weight of the distance of the patches kept last from those of the base, as they
            leave the last norm: their squared difference (`mse`), or the divergence of their
            softmax (`kl`).
        backbone: factor of the rate at which the base itself learns.
    """

    name: str
    rate: float = 2.0
    teacher: float = 0.5
    tokens: float = 0.5
    distance: str = "mse"
    backbone: float = 0.01
    seen: Watched = field(default_factory=Watched)

    def groups(self, run: Run) -> Iterable[ParameterGroup]:
        """The base learns more slowly than what was put in."""
        members = tuple(sorted(run.rewritten.result.base_trained))
        if members and self.backbone != 1 and self.deciding(run):
            yield ParameterGroup("backbone", members, lr=run.settings.lr * self.backbone)

    def before_step(self, run: Run) -> None:
        """Watches who decides, and the tokens behind the last norm."""
        modules = {str(i): m for i, m in enumerate(self.deciding(run))}
        if (norm := run.rewritten.result.anatomy.norm) is not None and self.tokens:
            modules["tokens"] = run.module.get_submodule(norm)
        self.seen.on(run.module, modules)

    def deciding(self, run: Run) -> list[Any]:
        """The modules that decide, from the first one on."""
        return [m for m in run.inserted(self.name) if hasattr(m, "predictor")]

    def terms(self, run: Run, batch: Batch, output: Any) -> Mapping[str, torch.Tensor]:
        """The three terms, weighted."""
        modules, seen = self.deciding(run), self.seen.values
        if not modules:
            return {}
        kept = [seen[str(i)] for i, _ in enumerate(modules)]
        found = {"rate": self.rate * rates_missed(kept, [m.rate for m in modules])}
        if not (self.teacher or self.tokens):
            return found
        scores, tokens = self._base(run, batch.images)
        if self.teacher:
            own, other = (each.float().log_softmax(1) for each in (logits(output), scores))
            apart = F.kl_div(own, other, reduction="batchmean", log_target=True)
            found["teacher"] = self.teacher * apart
        if self.tokens and "tokens" in seen and tokens is not None:
            patches = kept[-1].shape[1]
            pair = seen["tokens"][:, -patches:].float(), tokens[:, -patches:].float()
            found["tokens"] = self.tokens * tokens_apart(*pair, kept[-1], self.distance)
        return found

    @torch.no_grad()
    def _base(self, run: Run, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scores of the model that prunes nothing, and its tokens behind the last norm."""
        norm, tokens = run.rewritten.result.anatomy.norm, list[torch.Tensor]()
        if norm is None:
            return logits(run.base(images)), None
        keep = run.base.get_submodule(norm).register_forward_hook(lambda _, g, y: tokens.append(y))
        try:
            return logits(run.base(images)), tokens[0]
        finally:
            keep.remove()


def rates_missed(kept: Sequence[torch.Tensor], rates: Sequence[float]) -> torch.Tensor:
    """The mean over stages of the mean over images of (share that is kept - rate)^2.

    Args:
        kept: by stage [B, N], 1 for a patch that is kept.
        rates: by stage.
    """
    pairs = zip(kept, rates, strict=True)
    return torch.stack([((k.float().mean(1) - r) ** 2).mean() for k, r in pairs]).mean()


def tokens_apart(
    own: torch.Tensor, other: torch.Tensor, kept: torch.Tensor, distance: str
) -> torch.Tensor:
    """How far tokens [B, N, C] that are kept [B, N] are from those of another model.

    The mean of squares (`mse`), or the mean over tokens of the divergence of softmax (`kl`); zero
    where none is kept.
    """
    weight = (kept.detach() > 0.5).to(own.dtype)[..., None]
    count = weight.sum().clamp_min(1)
    if distance == "mse":
        return ((own - other) ** 2 * weight).sum() / (count * own.shape[2])
    apart = F.kl_div(own.log_softmax(-1), other.log_softmax(-1), reduction="none", log_target=True)
    return (apart * weight).sum() / count


@dataclass(frozen=True)
class FallingKeep(Procedure):
    """All patches stay for `start` epochs; over `length` more their share falls along a cosine."""

    name: str
    start: int
    length: int

    def before_step(self, run: Run) -> None:
        """The share of this step, in every module of the pass."""
        module: Any
        for module in run.inserted(self.name):
            module.rate = share(module.keep, run.epoch, self.start, self.length)


def share(keep: float, epoch: float, start: int, length: int) -> float:
    """What stays after so many epochs: keep + (1 - keep) (1 + cos(pi t)) / 2, t from 0 to 1."""
    done = min(max((epoch - start) / length, 0.0), 1.0)
    return keep + (1 - keep) * (1 + math.cos(math.pi * done)) / 2
