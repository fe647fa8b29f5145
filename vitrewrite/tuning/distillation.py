"""What a recipe's teacher adds to the loss of a step, and a cache of what it says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from ..data import Batch, Images, batches
from ..tasks import logits
from .procedure import Hooks
from .run import Run
from .teachers import Teacher


class Distillation(Hooks):
    """The teacher's share of the loss.

    Soft: Hinton, Vinyals, Dean, 2015, section 2: temperature ^ 2 times the Kullback-Leibler
    divergence of the scores. Hard: Touvron et al., ICML 2021, equation 3: cross-entropy with the
    teacher's best class.
    """

    def __init__(self, run: Run, device: torch.device) -> None:
        assert run.teacher is not None
        self.settings = run.settings
        self.teacher: Teacher | Lessons = run.teacher
        if run.settings.teacher_cache:
            every = run.settings.evaluation_batch
            self.teacher = Lessons(run.teacher, run.phase.images(run), every, device)

    def terms(self, run: Run, batch: Batch, output: Any) -> Mapping[str, torch.Tensor]:
        """The loss towards the teacher, weighted."""
        settings, scores = self.settings, logits(output)
        wanted = self.teacher(batch.images)
        if settings.distil == "hard":
            loss = F.cross_entropy(scores, wanted.argmax(1))
        else:
            loss = _divergence(scores.float(), wanted.float(), settings.temperature)
        return {"distillation": settings.distil_weight * loss}


def _divergence(scores: torch.Tensor, wanted: torch.Tensor, temperature: float) -> torch.Tensor:
    """Averaged over all but the classes, which are the second axis."""
    own, other = ((each / temperature).log_softmax(1) for each in (scores, wanted))
    apart = F.kl_div(own, other, reduction="none", log_target=True)
    return temperature**2 * apart.sum(1).mean()


class Lessons:
    """What a teacher says of every image that a phase has, found again by the image itself.

    The images are shown to it in their own order, so the same is known after an interruption. They
    are told apart by 63 bits that are computed from all of their own, on the device.
    """

    def __init__(self, teacher: Teacher, images: Images, batch: int, device: torch.device) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.weights = torch.empty(0, dtype=torch.int64)
        keys, rows = [], []
        for each in batches(images, batch):
            shown = each.to(device).images
            keys.append(self._key(shown))
            rows.append(teacher(shown))
        self.keys, order = torch.cat(keys).sort()
        self.rows = torch.cat(rows)[order]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """What the teacher said of these images; any other image stops the run."""
        keys = self._key(images)
        places = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
        torch._assert_async((self.keys[places] == keys).all())
        return self.rows[places]

    def _key(self, images: torch.Tensor) -> torch.Tensor:
        """A number for each image (B,), from the bits of its values."""
        bits = images.float().flatten(1).contiguous().view(torch.int32).long()
        if not len(self.weights):  # the first images say how many values there are
            drawn = torch.randint(1, 1 << 62, bits.shape[1:], generator=self.generator)
            self.weights = drawn.to(bits.device) | 1
        return (bits * self.weights).sum(1)
