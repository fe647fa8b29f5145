"""How a result is used: what images it takes, what it returns, and what its classes are called."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from ..data.labels import LABEL_NAMES, class_names
from ..data.preprocessing import Preprocessing
from ..errors import DataError, FileError
from ..models.image_processors import BY_DEFAULT
from ..tasks.choice import coarsest_strides
from ..tasks.queries import CLASSES, MASKS
from ..text import shown
from ..tracing.about import about
from ..tracing.guards import check_input
from ..tracing.notes import VALUE

if TYPE_CHECKING:
    from ..rewrite.rewritten import Rewritten

PREPROCESSING = "preprocessing.json"
SCORES = "logits"
CLASSIFICATION, DENSE, QUERIES, OTHER = "classification", "dense", "queries", "other"


@dataclass(frozen=True)
class Usage:
    """How a model is used.

    Attributes:
        task: what it returns: scores of classes, of an image (`classification`) or of each place
            (`dense`); masks with classes (`queries`); or something else (`other`).
        size: channels, height and width of the images that it was made for.
        fixed: whether it takes that size only.
        multiple: height and width of other sizes are multiples of these.
        dtype: of the images.
        mean: of each channel of an image from 0 to 1; it is subtracted.
        std: what is divided by then.
        interpolation: of the resizing.
        crop_pct: how much of the resized image the crop takes.
        crop_mode: `center` keeps the ratio of the sides and the middle, `squash` does not,
            `border` adds a border.
        stated: whether the model says so; else these are defaults of its library.
        outputs: classes, or 0 if it returns something else.
        classes: their names; empty if nobody says.
    """

    task: str
    size: tuple[int, int, int]
    fixed: bool
    multiple: tuple[int, int]
    dtype: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str
    stated: bool
    outputs: int
    classes: tuple[str, ...]

    @classmethod
    def of(cls, rewritten: Rewritten) -> Usage | None:
        """That of a model; None if it takes something else than one image."""
        example = rewritten.result.example
        if len(example) != 1 or not example[0].is_floating_point():
            return None
        try:
            wanted = Preprocessing.of(rewritten.base)
        except DataError:
            return None
        task, outputs = _task(rewritten)
        learnt = rewritten.weights_request != "random"
        config, segments = wanted.config, task in (DENSE, QUERIES)
        record = about(rewritten.base).pretrained_cfg or {}
        return cls(
            task=task,
            size=wanted.size,
            fixed=is_fixed(rewritten),
            multiple=coarsest_strides(rewritten.result.anatomy, wanted.size[1:]),
            dtype=str(example[0].dtype).removeprefix("torch."),
            mean=tuple(map(float, config["mean"])),
            std=tuple(map(float, config["std"])),
            interpolation="bilinear" if segments else str(config["interpolation"]),
            crop_pct=1.0 if segments else float(config["crop_pct"]),
            crop_mode="squash" if segments else str(config["crop_mode"]),
            stated="mean" in record and "std" in record and not record.get(BY_DEFAULT),
            outputs=outputs,
            classes=class_names(rewritten.base, outputs, learnt=learnt) if outputs else (),
        )

    @classmethod
    def from_json(cls, found: Any) -> Usage:
        """What `to_json` made.

        Raises:
            FileError: VR595 if it did not.
        """
        try:
            lists: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}
            made = cls(**lists)
            if not all(isinstance(v, str) for v in (made.task, *made.classes)):
                raise TypeError("names are texts")
            made.preprocessing.normalised(torch.zeros(made.size))
            torch.empty(0, dtype=made.torch_dtype)
        except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
            raise FileError(
                "VR595", f"{PREPROCESSING} says nothing that can be used: {shown(error)}"
            ) from error
        return made

    def to_json(self) -> dict[str, Any]:
        """The content of `preprocessing.json`."""
        return asdict(self)

    @property
    def record(self) -> dict[str, Any]:
        """What it says as timm's records do; nothing where the model says nothing."""
        found = {LABEL_NAMES: self.classes} if self.classes else {}
        return {**self.preprocessing.config, **found} if self.stated else found

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of the images."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found

    @property
    def preprocessing(self) -> Preprocessing:
        """The transforms."""
        names = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
        return Preprocessing(self.size, {name: getattr(self, name) for name in names})

    @property
    def resized(self) -> tuple[int, int]:
        """Height and width before the crop."""
        return math.floor(self.size[1] / self.crop_pct), math.floor(self.size[2] / self.crop_pct)


def _task(rewritten: Rewritten) -> tuple[str, int]:
    """What a model returns, and how many classes that has."""
    output = _output(rewritten)
    if isinstance(output, Mapping):
        if {CLASSES, MASKS} <= output.keys():
            return QUERIES, int(_shape(output[CLASSES])[-1]) - 1
        if key_of(rewritten) is None:
            return OTHER, 0
        output = output[SCORES]
    shape = _shape(output)
    kinds = {2: CLASSIFICATION, 4: DENSE}
    return (kinds[len(shape)], int(shape[1])) if len(shape) in kinds else (OTHER, 0)


def key_of(rewritten: Rewritten) -> str | None:
    """The entry with the scores of classes, first in what models of Hugging Face return."""
    output = _output(rewritten)
    return SCORES if isinstance(output, Mapping) and next(iter(output), None) == SCORES else None


def _output(rewritten: Rewritten) -> Any:
    unit: Any = rewritten.result.root
    return unit.template.graph.output_node().args[0]


def _shape(output: Any) -> tuple[int, ...]:
    """The shape of what the graph returns; nothing if it is no tensor."""
    value = VALUE.get(output) if isinstance(output, fx.Node) else None
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()


def is_fixed(rewritten: Rewritten) -> bool:
    """Whether a model takes images of one size only."""
    unit: Any = rewritten.result.root
    return any(node.target is check_input for node in unit.template.graph.nodes)
