"""The hyperparameters of training: what `tune { ... }` and `tune.NAME=VALUE` can set.

This file imports no torch: specs are checked without.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitrewrite.catalog.declare import option
from vitrewrite.catalog.signatures import OptionInfo

# They change how a run is carried out, not what comes out of it: a resumed run may have others.
FREE = ("workers", "cache", "log_every", "checkpoint_every", "keep", "evaluation_batch")

OPTIMISERS = (
    "adamw", "adam", "nadamw", "nadam", "sgd", "nesterov", "rmsprop", "lamb", "lars", "lion",
    "adan", "adafactor", "adagrad", "adadelta", "adamax", "radam",
)  # fmt: skip
WITH_MOMENTUM = ("sgd", "nesterov", "rmsprop", "lars")
INPUTS = ("model", "unit", "imagenet", "inception", "clip")
SCHEDULES = ("cosine", "step", "poly", "plateau", "constant")


@dataclass(frozen=True)
class Settings:
    """Hyperparameters, with their defaults.

    The batch is that of a step, over all processes and pieces, so results do not depend on how
    many there are.
    """

    epochs: int = option(
        10, minimum=0, needs="steps is None", help="passes over the training images"
    )
    steps: int | None = option(None, minimum=0, help="steps, instead of epochs")
    batch: int = option(64, minimum=1, help="images per step, over all processes and pieces")
    accumulate: int = option(1, minimum=1, help="pieces that a step's images are computed in")
    optimiser: str = option("adamw", choices=OPTIMISERS, help="timm's of that name; sgd is plain")
    lr: float = option(1e-3, minimum=0, help="learning rate after warm-up")
    lr_batch: int | None = option(
        None, minimum=1, help="the batch that lr is for; it grows with the batch"
    )
    min_lr: float = option(
        0.0,
        minimum=0,
        needs="schedule in ('cosine', 'poly', 'plateau')",
        help="learning rate that it ends at",
    )
    momentum: float = option(
        0.9, minimum=0, maximum=1, help="of the optimisers that have one",
        needs=f"optimiser in {WITH_MOMENTUM!r}",
    )  # fmt: skip
    weight_decay: float = option(1e-4, minimum=0, help="of weights; biases and norms have none")
    schedule: str = option("cosine", choices=SCHEDULES, help="timm's of that name")
    warmup_epochs: float = option(0.0, minimum=0, help="epochs in which the rate rises to lr")
    warmup_lr: float = option(0.0, minimum=0, help="learning rate that it rises from")
    decay_epochs: float = option(
        30.0, minimum=0, needs="schedule == 'step'", help="epochs from step to step"
    )
    decay_rate: float = option(
        0.1, minimum=0, maximum=1, needs="schedule in ('step', 'plateau')",
        help="factor at a step, or where evaluations stay as they were",
    )  # fmt: skip
    patience: int = option(
        10, minimum=0, needs="schedule == 'plateau'", help="evaluations without a better one"
    )
    power: float = option(0.9, minimum=0, needs="schedule == 'poly'", help="of the polynomial")
    label_smoothing: float = option(0.0, minimum=0, maximum=1, help="of the cross-entropy")
    clip: float | None = option(None, minimum=0, help="largest norm of the gradient")
    precision: str = option("no", choices=("no", "bf16", "fp16"), help="of automatic mixing")
    shard: bool = option(False, help="FSDP2: each process holds a part of every parameter")
    workers: int | None = option(
        None, minimum=0, help="processes that read images; none: by images and cores"
    )
    cache: int = option(
        1024, minimum=0, help="MiB of decoded images in memory, of those trained and measured each"
    )
    log_every: int = option(10, minimum=1, help="steps between lines of metrics.jsonl")
    evaluate_every: int = option(1, minimum=1, help="epochs between evaluations")
    evaluation_batch: int = option(64, minimum=1, help="images per batch of an evaluation")
    checkpoint_every: int | None = option(None, minimum=1, help="steps; none: after each epoch")
    keep: int = option(2, minimum=1, help="checkpoints that are kept")

    # -- images -----------------------------------------------------------------------------------
    inputs: str = option(
        "model", words=INPUTS, help='unit: [0, 1]; model: as its record says; or "MEAN/STD"'
    )
    resize: str = option(
        "model", choices=("model", "whole"), help="whole: to the size itself, nothing is cut off"
    )
    augment: str = option(
        "none", choices=("none", "standard", "deit"), help="what the following are where not set"
    )
    crop: float | None = option(
        None, above=0, maximum=1, help="least share of the area that a random crop keeps"
    )
    zoom: float | None = option(
        None, minimum=1, help="of images with label maps: from 1 / zoom to zoom times the size"
    )
    one_class: float = option(
        0.75, above=0, maximum=1, needs="zoom is not None or augment != 'none'",
        help="largest share of one class in a crop of a label map",
    )  # fmt: skip
    flip: float | None = option(None, minimum=0, maximum=1, help="probability of a mirror image")
    colour: float | None = option(
        None,
        minimum=0,
        help="how far brightness, contrast, saturation change; not beside a policy",
    )
    distort: bool = option(False, help="photometric distortion, as of SSD")
    auto_augment: str | None = option(
        None, help="a policy of timm, such as 'rand-m9-mstd0.5-inc1' or '3a'"
    )
    erase: float | None = option(
        None, minimum=0, maximum=1, help="probability that a rectangle becomes noise"
    )

    @property
    def peak(self) -> float:
        """The learning rate after warm-up, for this batch."""
        return self.scaled(self.lr)

    def scaled(self, rate: float) -> float:
        """A learning rate for this batch."""
        return rate if self.lr_batch is None else rate * self.batch / self.lr_batch

    def changed(self, values: Mapping[str, Any]) -> Settings:
        """These settings with other values.

        Raises:
            KeyError: for a name that is none of a setting.
        """
        if unknown := values.keys() - options().keys():
            raise KeyError(f"no setting {min(unknown)!r}")
        return dataclasses.replace(self, **values)

    def binding(self) -> dict[str, Any]:
        """The settings that a resumed run must share."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in FREE}


@functools.cache
def options() -> Mapping[str, OptionInfo]:
    """What each setting takes, as the language checks it."""
    return {field.name: _info(field) for field in dataclasses.fields(Settings)}


def _info(field: dataclasses.Field[Any]) -> OptionInfo:
    kind, _, rest = str(field.type).partition(" | ")
    details: Any = field.metadata
    return OptionInfo(field.name, kind, False, bool(rest), False, field.default, **details)
