"""Mixup and cutmix of the images of a step: timm's.

Images are mixed with those of their own piece of a step, as they are on this process, so what comes
out hangs on how a step is divided. timm draws from numpy's global generator, which every step seeds
by its number and process: a resumed run mixes the same, and each process its own.
"""

from __future__ import annotations

from typing import Any

from ..data import Batch
from .run import Run


class Mixing:
    """Mixes batches in training; does nothing if the settings ask for none."""

    def __init__(self, run: Run) -> None:
        self.run, self.off = run, run.settings.mix_off_epoch
        self.mixup = _mixup(run) if run.settings.mixes else None

    def __call__(self, batch: Batch) -> Batch:
        """Mixed images, and the shares of their classes (B, classes), smoothed."""
        if self.mixup is None:
            return batch
        self.mixup.mixup_enabled = self.off is None or self.run.epoch < self.off
        # timm mixes in place, and the images may be kept for the next epoch.
        images, labels = self.mixup(batch.images.clone(), batch.labels)
        return batch._replace(images=images, labels=labels)


def _mixup(run: Run) -> Any:
    import timm.data

    library: Any = timm.data
    settings = run.settings
    return library.Mixup(
        mixup_alpha=settings.mixup,
        cutmix_alpha=settings.cutmix,
        prob=settings.mix_prob,
        switch_prob=settings.mix_switch,
        mode=settings.mix_mode,
        label_smoothing=settings.label_smoothing,
        num_classes=run.task.classes,
    )
