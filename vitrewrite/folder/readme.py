"""`README.md` of a folder, and what the docstring of `model.py` says of images."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING

from ..data.labels import named
from ..emission.file import render
from ..emission.literals import one_line
from ..text import giga
from ..tracing import inputs
from ..tracing.about import about
from .usage import CLASSIFICATION, DENSE, OTHER, PREPROCESSING, QUERIES, Usage, key_of

if TYPE_CHECKING:
    from ..rewrite.rewritten import Rewritten

_WIDTH = 96
_FEW = 20
"""So many classes are named; all are in `preprocessing.json`."""
_NAMELESS = "whose names are not known"
_SPACES = {1: "grey", 3: "RGB"}


def readme(rewritten: Rewritten, usage: Usage | None, *, weights: bool) -> str:
    """The text of `README.md`.

    Args:
        rewritten: what is in the folder.
        usage: how it is used; None if it takes no image.
        weights: whether the folder has weights.
    """
    params = rewritten.measures.params
    classes = "\n".join(_numbered(usage)) if usage is not None else ""
    spec = "\n".join(map(one_line, str(rewritten.spec).strip().splitlines())) or "# no clauses"
    example = about(rewritten.base).example
    return render(
        "README.md.jinja",
        title=_title(rewritten),
        weights=weights,
        weighted=one_line(rewritten.weights),
        lowered=rewritten.lowered,
        total=f"{params.total:,}",
        trainable=f"{params.trainable:,}",
        macs=giga(rewritten.measures.macs),
        usage=usage,
        takes=_takes(usage) if usage else [],
        returns=_returns(usage) if usage else "",
        stated=inputs.statement(rewritten.base, example) or "",
        prepare="\n".join(prepare_lines(usage)) if usage else "",
        mode={1: "L", 3: "RGB"}[usage.size[0]] if usage else "",
        key=key_of(rewritten),
        classes=classes,
        spec=spec,
        fence=_fence(spec + classes),
        preprocessing=PREPROCESSING,
        segments=usage is not None and usage.task in (DENSE, QUERIES),
    )


def docstring_lines(usage: Usage | None) -> str:
    """What the docstring of `model.py` says of images; nothing if it takes none."""
    if usage is None:
        return ""
    returns = _returns(usage).replace(f", {_NAMELESS}", "")
    text = f"Takes {'; '.join(_takes(usage))}. {returns}"
    return "\n".join(textwrap.wrap(one_line(text), _WIDTH, break_on_hyphens=False))


def _title(rewritten: Rewritten) -> str:
    what = "lowered from" if rewritten.lowered else "rewritten by"
    return f"{one_line(rewritten.model_name)} {what} {one_line(rewritten.spec.name)}"


def _takes(usage: Usage) -> list[str]:
    """How an image gets to be what the model takes, step by step."""
    channels, height, width = usage.size
    sizes = f"{channels}x{height}x{width}"
    if not usage.fixed:
        by = f", in multiples of {max(usage.multiple)}" if max(usage.multiple) > 1 else ""
        sizes += f" (other sizes too{by})"
    resized = "x".join(map(str, usage.resized))
    way = {
        "squash": f"resized to {resized}",
        "border": f"resized into {resized}, a border around it",
    }.get(usage.crop_mode, f"the shorter side resized to {min(usage.resized)}")
    crop = "" if usage.crop_mode == "squash" and usage.crop_pct == 1 else ", the middle cropped"
    unsure = "" if usage.stated else " (a default: the model does not say)"
    return [
        f"images {sizes}, {_SPACES[channels]}",
        f"{way} ({usage.interpolation}){crop}",
        f"values from 0 to 1, mean {_numbers(usage.mean)}, std {_numbers(usage.std)}{unsure}",
    ]


def _numbers(values: tuple[float, ...]) -> str:
    texts = [f"{value:g}" for value in values]
    return texts[0] if len(set(texts)) == 1 else f"({', '.join(texts)})"


def _returns(usage: Usage) -> str:
    if usage.task == OTHER:
        return "Returns what the original returns."
    what = {
        CLASSIFICATION: "scores of",
        DENSE: "maps of scores of",
        QUERIES: "masks with scores of",
    }[usage.task]
    count = usage.outputs
    if not usage.classes:
        return f"Returns {what} {count} classes, {_NAMELESS}."
    called = list(map(one_line, usage.classes))
    names = ", ".join(called)
    if len(names) > 2 * _WIDTH:
        names = f"{called[0]} to {called[-1]} ({PREPROCESSING} has all)"
    return f"Returns {what} {count} classes: {names}."


def _numbered(usage: Usage) -> list[str]:
    """The classes with their numbers; of many the first ones."""
    found = [f"{k:4}  {one_line(named(usage.classes, k))}" for k in range(len(usage.classes))]
    rest = len(found) - _FEW
    more = [f"      and {rest} more, in {PREPROCESSING}"] if rest > 1 else []
    return [*found[:_FEW], *more] if rest > 1 else found


def prepare_lines(usage: Usage) -> list[str]:
    """Python that makes the transform: that of torchvision, or of timm where it takes more."""
    _, height, width = usage.size
    center = usage.crop_mode == "center"
    if usage.crop_mode != "squash" and not (center and height == width):
        record = ", ".join(f"{k}={v!r}" for k, v in usage.preprocessing.config.items())
        return [
            "from timm.data import create_transform",
            f"prepare = create_transform({usage.size}, {record})",
        ]
    mode = usage.interpolation.upper()
    size = repr(min(usage.resized) if center else usage.resized)
    cropped = usage.resized != (height, width) or center
    steps = [
        f"v2.Resize({size}, v2.InterpolationMode.{mode if mode != 'RANDOM' else 'BILINEAR'})",
        *([f"v2.CenterCrop({(height, width)})"] if cropped else []),
        "v2.PILToTensor()", "v2.ToDtype(torch.float32, scale=True)",
        f"v2.Normalize({usage.mean}, {usage.std})",
        *([f"v2.ToDtype(torch.{usage.dtype})"] if usage.dtype != "float32" else []),
    ]  # fmt: skip
    return ["prepare = v2.Compose([", *(f"    {step}," for step in steps), "])"]


def _fence(body: str) -> str:
    return "`" * max(3, 1 + max(map(len, re.findall("`+", body)), default=0))
