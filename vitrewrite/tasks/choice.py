"""Which task it is: what the data have, and what the model returns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..anatomy.sites import Anatomy
from ..data import Data
from ..errors import DataError
from ..tracing.about import about
from ..tracing.inputs import example_of_one
from ..tracing.unit import on_meta
from .classification import Classification, logits
from .dense import Dense
from .queries import CLASSES, MASKS, QueryTask
from .task import Task


def task_for(data: Data, root: nn.Module, anatomy: Anatomy) -> Task:
    """The task of a captured model on data.

    Args:
        data: with a label or a label map for each image.
        root: the model as it was captured; what it was captured for is what it is run on.
        anatomy: its sites.

    Raises:
        DataError: VR743 if the model has too few classes, VR746 if what it returns does not fit
            the data, VR748 if the sides of its images do not divide into its levels.
        TuneError: VR856, VR857 if a loss cannot be had.
    """
    example = example_of_one(root)
    with torch.no_grad():
        output = on_meta(root)(*example)
    task = _task(data, output, about(root).config)
    if data.maps:
        check_sides(anatomy, (int(example[0].shape[-2]), int(example[0].shape[-1])))
    data.check_head(task.classes)
    return task


def _task(data: Data, output: Any, config: Any) -> Task:
    queries = isinstance(output, Mapping) and {CLASSES, MASKS} <= output.keys()
    scores = logits(output)
    if data.maps and queries:
        return QueryTask(output, config)
    if data.maps and scores.dim() == 4:
        return Dense(int(scores.shape[1]))
    if not data.maps and scores.dim() == 2:
        return Classification(int(scores.shape[-1]))
    have = "a label map for each image" if data.maps else "one label for each image"
    valid = "scores (B, classes, H, W), or queries" if data.maps else "scores (B, classes)"
    raise DataError(
        "VR746",
        f"'{data.name}' has {have}, and the model returns {tuple(scores.shape)}",
        notes=[f"valid: a model that returns {valid}"],
    )


def check_sides(anatomy: Anatomy, size: tuple[int, int]) -> None:
    """Whether the sides of images divide into the levels of a decoder that reads several.

    Raises:
        DataError: VR748 if not: each level would be scaled by another factor.
    """
    strides = coarsest_strides(anatomy, size)
    if any(side % stride for side, stride in zip(size, strides, strict=True)):
        height, width = size
        near = [max(1, round(s / d)) * d for s, d in zip(size, strides, strict=True)]
        raise DataError(
            "VR748",
            f"images of {height}x{width} do not divide into the levels of the decoder",
            notes=[f"valid: sides that are multiples of {max(strides)}"],
            suggestion=f"build the model for {near[0]}x{near[1]}",
        )


def coarsest_strides(anatomy: Anatomy, size: tuple[int, int]) -> tuple[int, int]:
    """Pixels per cell of the coarsest level, down and across: powers of two.

    Args:
        anatomy: of a model; without a decoder both are 1.
        size: height and width of the images that it was captured for.
    """
    grids = [] if anatomy.decoder is None else [v.grid for v in anatomy.decoder.levels if v.grid]
    pairs = zip(size, min(grids, default=size), strict=True)
    down, across = (1 << max(0, math.ceil(math.log2(side / cells))) for side, cells in pairs)
    return down, across
