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
FREE = (
    "workers", "cache", "cache_at", "log_every", "checkpoint_every", "keep", "evaluation_batch",
    "checkpoint_gradients", "tracker",
)  # fmt: skip

FEATURES = "features"
OPTIMISERS = (
    "adamw", "adam", "nadamw", "nadam", "sgd", "nesterov", "rmsprop", "lamb", "lars", "lion",
    "adan", "adafactor", "adagrad", "adadelta", "adamax", "radam",
)  # fmt: skip
WITH_MOMENTUM = ("sgd", "nesterov", "rmsprop", "lars")
INPUTS = ("model", "unit", "imagenet", "inception", "clip")
SCHEDULES = ("cosine", "step", "poly", "plateau", "constant")
MIX_MODES = ("batch", "pair", "elem")
SEARCHES = ("gates", "ranked", "salience", "random")
OF_A_SEARCH = (
    "macs", "search", "search_epochs", "search_steps", "search_lr", "search_min_lr", "gate_lr",
    "cost_weight", "count", "search_draw",
)  # fmt: skip
OF_STITCHES = (
    "stitch_sampling", "stitch_warmup", "stitch_intervals", "stitch_momentum", "stitch_scores",
    "stitch_temperature", "stitch_start", "stitch_teacher", "stitch_weight", "stitch_by",
    "stitch_batch", "stitch_rounds", "stitch_table",
)  # fmt: skip
OF_AUGMENTATION = ("augment", "crop", "zoom", "flip", "colour", "distort", "auto_augment", "erase")
_SCORES = "stitch_sampling == 'scored'"
_TIMED = "stitch_by == 'latency'"
_SEARCHES = "macs is not None"
_TRAINS = "macs is not None and search in ('gates', 'ranked')"
_TEACHES = "teacher is not None"
_KEEPS = "cache == 'features'"
_MIXES = "mixup > 0 or cutmix > 0"
_MIXES_BOTH = "mixup > 0 and cutmix > 0"
_MOVES = f"optimiser in {WITH_MOMENTUM!r}"


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
        0.9, minimum=0, maximum=1, needs=_MOVES, help="of the optimisers that have one"
    )
    weight_decay: float = option(1e-4, minimum=0, help="of weights; biases and norms have none")
    schedule: str = option("cosine", choices=SCHEDULES, help="timm's of that name")
    warmup_epochs: float = option(0.0, minimum=0, help="epochs in which the rate rises to lr")
    warmup_lr: float = option(0.0, minimum=0, help="learning rate that it rises from")
    decay_epochs: float = option(
        30.0, minimum=0, needs="schedule == 'step'", help="epochs from step to step"
    )
    decay_rate: float = option(
        0.1,
        minimum=0,
        maximum=1,
        needs="schedule in ('step', 'plateau')",
        help="factor at a step, or where evaluations stay as they were",
    )
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
    cache: int | str = option(
        1024,
        minimum=0,
        words=(FEATURES,),
        help="MiB of decoded images in memory, of those trained and measured each; features: what "
        "the frozen part of the model makes of each image is computed once, and kept on disk",
    )
    cache_dtype: str = option(
        "model",
        choices=("model", "bf16"),
        needs=_KEEPS,
        help="what features are kept in: as the model computes them, or bfloat16",
    )
    cache_at: str | None = option(
        None, needs=_KEEPS, help="folder of features that several runs share; else in that of a run"
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
        0.75,
        above=0,
        maximum=1,
        needs="zoom is not None or augment != 'none'",
        help="largest share of one class in a crop of a label map",
    )
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

    # -- recipes: mixed images --------------------------------------------------------------------
    mixup: float = option(0.0, minimum=0, help="alpha of mixup: images and labels are blended")
    cutmix: float = option(0.0, minimum=0, help="alpha of cutmix: a box comes from another image")
    mix_prob: float = option(
        1.0, minimum=0, maximum=1, needs=_MIXES, help="share of the draws in which any is done"
    )
    mix_switch: float = option(
        0.5, minimum=0, maximum=1, needs=_MIXES_BOTH, help="share of cutmix where both are set"
    )
    mix_mode: str = option(
        "batch", choices=MIX_MODES, needs=_MIXES, help="what is drawn for, as timm has it"
    )
    mix_off_epoch: int | None = option(
        None, minimum=0, needs=_MIXES, help="epoch from which nothing is mixed"
    )

    # -- recipes: the model -----------------------------------------------------------------------
    drop_path: float | None = option(
        None, minimum=0, below=1, help="rate of stochastic depth that the model is built with"
    )

    checkpoint_gradients: bool = option(
        False, help="blocks are computed again in backward: less memory, the same gradients"
    )
    layer_decay: float | None = option(
        None, above=0, maximum=1, help="factor of lr from layer to layer, from the head down"
    )

    # -- recipes: what a run ends with ------------------------------------------------------------
    ema: float | None = option(
        None, minimum=0, below=1, help="decay of the moving average that is measured and written"
    )
    ema_warmup: bool = option(
        False, needs="ema is not None", help="a smaller decay in the first steps, as timm has it"
    )
    report: str = option("last", choices=("last", "best"), help="the evaluation a phase ends with")
    stop_after: int | None = option(
        None, minimum=1, help="evaluations without a better one after which a phase ends"
    )
    tracker: str = option(
        "none", choices=("none", "tensorboard"), help="what shows the metrics while training"
    )

    # -- recipes: a teacher -----------------------------------------------------------------------
    teacher: str | None = option(
        None, help="what to learn from: MODEL(weights=...), base, or an entry of the model"
    )
    distil: str = option(
        "soft",
        choices=("soft", "hard", "none"),
        needs=_TEACHES,
        help="the teacher's scores, its best class, or nothing but what passes do with it",
    )
    temperature: float = option(
        1.0, above=0, needs=f"{_TEACHES} and distil == 'soft'", help="that scores are divided by"
    )
    distil_weight: float = option(
        0.5,
        minimum=0,
        maximum=1,
        needs=f"{_TEACHES} and distil != 'none'",
        help="share of the teacher in the loss; the labels have the rest",
    )
    teacher_cache: bool = option(
        False,
        needs=f"{_TEACHES} and distil != 'none'",
        help="the teacher sees each image once, before training; not of images that vary",
    )

    # -- a search over structure ------------------------------------------------------------------
    macs: int | None = option(
        None, minimum=1, help="of an image, which a search over structure ends with"
    )
    search: str = option(
        "gates",
        choices=SEARCHES,
        needs=_SEARCHES,
        help="what decides: trained gates, a ranking of trained scores, salience, or chance",
    )
    search_epochs: int = option(
        20, minimum=0, needs=f"{_TRAINS} and search_steps is None", help="epochs of the search"
    )
    search_steps: int | None = option(
        None,
        minimum=1,
        needs=f"{_SEARCHES} and search != 'random'",
        help="steps of the search, instead of epochs; of salience the batches that it looks at",
    )
    search_lr: float | None = option(
        None, minimum=0, needs=_TRAINS, help="learning rate of the weights in the search; else lr"
    )
    search_min_lr: float | None = option(
        None, minimum=0, needs=_TRAINS, help="that it ends at; else min_lr"
    )
    gate_lr: float = option(
        1e-3, above=0, needs=_TRAINS, help="of gates and scores: constant, whatever the batch"
    )
    cost_weight: float | None = option(
        None,
        minimum=0,
        needs=f"{_SEARCHES} and search == 'gates'",
        help="of (macs - those there are)^2, in G; else 30 over the square of all there can be",
    )
    count: str = option(
        "model",
        choices=("model", "patches"),
        needs=_SEARCHES,
        help="how MACs are counted: as report does, or by the table of SPViT's paper",
    )
    search_draw: int = option(
        0, minimum=0, needs=f"{_SEARCHES} and search == 'random'", help="which of the draws"
    )

    # -- several models that are stitched ---------------------------------------------------------
    stitch_sampling: str = option(
        "uniform",
        choices=("uniform", "scored"),
        help="how a step's stitch is drawn: all alike, or by intervals of MACs and scores (ESTA)",
    )
    stitch_warmup: float = option(
        0.1, minimum=0, maximum=1, needs=_SCORES, help="share of the steps with uniform draws first"
    )
    stitch_intervals: int = option(
        15, minimum=1, maximum=10000, help="of equal width over the costs; each has its best stitch"
    )
    stitch_by: str = option(
        "macs",
        choices=("macs", "latency"),
        help="what stitches cost: MACs when taken out, or time, measured as the run begins",
    )
    stitch_batch: int = option(
        1, minimum=1, maximum=65536, needs=_TIMED, help="images of a timed run"
    )
    stitch_rounds: int = option(
        7,
        minimum=1,
        maximum=10000,
        needs=_TIMED,
        help="timed runs of each stitch, in turn with the others; the median counts",
    )
    stitch_table: str | None = option(
        None, needs=_TIMED, help="a file with the times, in place of measuring them"
    )
    stitch_momentum: float = option(
        0.9, minimum=0, below=1, help="of the moving average of a stitch's score"
    )
    stitch_scores: str = option(
        "raw",
        choices=("raw", "maximum"),
        needs=_SCORES,
        help="what the softmax is of: the scores, or over the largest in the interval",
    )
    stitch_temperature: float = option(
        1.0, above=0, needs=_SCORES, help="that they are divided by; raw ones may be hundreds"
    )
    stitch_start: str = option(
        "zero", choices=("zero", "score"), help="what the moving average starts from"
    )
    stitch_teacher: str = option(
        "none",
        choices=("none", "anchor"),
        help="anchor: the largest model learns in every step too, and stitches from its classes",
    )
    stitch_weight: float = option(
        0.5,
        minimum=0,
        maximum=1,
        needs="stitch_teacher == 'anchor'",
        help="share of the largest model's class in the loss of a stitch",
    )

    @property
    def peak(self) -> float:
        """The learning rate after warm-up, for this batch."""
        return self.scaled(self.lr)

    def scaled(self, rate: float) -> float:
        """A learning rate for this batch."""
        return rate if self.lr_batch is None else rate * self.batch / self.lr_batch

    @property
    def keeps_features(self) -> bool:
        """Whether training runs without the frozen part of the model."""
        return self.cache == FEATURES

    @property
    def image_bytes(self) -> int:
        """Bytes of decoded images in memory."""
        found = default("cache") if isinstance(self.cache, str) else self.cache
        assert isinstance(found, int)
        return found << 20

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with each other."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def distils(self) -> bool:
        """Whether the loss has a part of the teacher."""
        return self.teacher is not None and self.distil != "none"

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
        bound = {k: v for k, v in dataclasses.asdict(self).items() if k not in FREE}
        return {**bound, **({"cache": FEATURES} if self.keeps_features else {})}


@functools.cache
def options() -> Mapping[str, OptionInfo]:
    """What each setting takes, as the language checks it."""
    return {field.name: _info(field) for field in dataclasses.fields(Settings)}


def default(name: str) -> object:
    """What a setting is where nothing is said."""
    return options()[name].default


def _info(field: dataclasses.Field[Any]) -> OptionInfo:
    kind, _, rest = str(field.type).partition(" | ")
    details: Any = field.metadata
    return OptionInfo(field.name, kind, False, rest == "None", False, field.default, **details)
