"""`show features`: how much each feature counts that a head reads of a model, by tap and block.

After figure 2 of Zhang et al., ECCV 2024 (SynQT), for every pass that says what its weights are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..catalog.own_code import own_code
from ..editing.editor import Insertion
from ..errors import DataError, MatchError
from ..rewrite.rewritten import Rewritten
from ..text import listing, plural, table
from .canvas import palette
from .picture import COLOURS
from .plot import INK, PALE, Axis, Plot, hexadecimal

_WIDTH, _LEFT, _RIGHT, _TOP, _TALL, _GAP = 860, 70, 836, 70, 120, 58
_NUMBERED = 14  # columns at most that have their values written on them
_BLOCK = re.compile(r"(.*)\[(\d+)\](?:\.(.*))?")


@dataclass(frozen=True)
class FeatureWeights:
    """Numbers of one kind.

    Attributes:
        measure: what they are, and of which pass.
        names: what is read, such as `blocks[3].attn`.
        values: [rows, names]; a row for each image where they hang on it, else one.
    """

    measure: str
    names: tuple[str, ...]
    values: torch.Tensor

    @property
    def by_image(self) -> bool:
        """Whether they hang on the image."""
        return len(self.values) > 1

    @property
    def taps(self) -> dict[str, list[tuple[str, int]]]:
        """By tap, the columns: what to write below each, and its place in the names.

        What is of no block is the last, under no tap.
        """
        found: dict[str, list[tuple[str, int]]] = {}
        for place, name in enumerate(self.names):
            match = _BLOCK.fullmatch(name)
            tap, column = ((match[3] or match[1]), match[2]) if match else ("", name)
            found.setdefault(tap, []).append((column, place))
        return dict(sorted(found.items(), key=lambda each: not each[0]))

    def to_json(self) -> dict[str, Any]:
        """Numbers by what they are about."""
        means, low, high = self.values.mean(0), self.values.amin(0), self.values.amax(0)
        if not self.by_image:
            return {name: _number(v) for name, v in zip(self.names, means.tolist(), strict=True)}
        rows = zip(self.names, means.tolist(), low.tolist(), high.tolist(), strict=True)
        return {
            name: {"mean": _number(mean), "low": _number(a), "high": _number(b)}
            for name, mean, a, b in rows
        }

    def lines(self) -> list[str]:
        """A table: taps by blocks."""
        means = self.values.mean(0).tolist()
        over = f", mean of {len(self.values)} images" if self.by_image else ""
        columns = list(dict.fromkeys(c for found in self.taps.values() for c, _ in found))
        blocks = [c for c in columns if c.isdigit()]
        columns = sorted(blocks, key=int) + [c for c in columns if not c.isdigit()]
        rows = [("", *columns)]
        for tap, found in self.taps.items():
            known = {column: _told(means[place]) for column, place in found}
            rows.append((tap, *(known.get(c, "") for c in columns)))
        return [f"{self.measure}{over}", *table(rows)]


@dataclass(frozen=True)
class FeaturesPicture:
    """All weights of features that a model has."""

    title: str
    tables: tuple[FeatureWeights, ...]

    @classmethod
    def of(cls, rewritten: Rewritten, images: torch.Tensor | None = None) -> FeaturesPicture:
        """Asks every pass of a model.

        Args:
            rewritten: a model, lowered or not.
            images: [images, C, H, W] as the model takes them, for weights that hang on the image.

        Raises:
            MatchError: VR570 if no pass of it has weights of features.
            DataError: VR571 if they hang on the image, and there are no images.
        """
        given = _called_with(rewritten, images)
        found: dict[str, tuple[list[str], list[torch.Tensor]]] = {}
        for insertion in rewritten.result.editor.insertions:
            for measure, values in _weights(rewritten, insertion, given).items():
                if values is None:
                    raise DataError(
                        "VR571",
                        f"the weights of '{insertion.pass_name}' hang on the image",
                        suggestion="add data=digits, or a folder of images",
                    )
                names, parts = found.setdefault(f"{insertion.pass_name}, {measure}", ([], []))
                names += insertion.reads or (insertion.site.role,)
                parts.append(values.detach().float().cpu().reshape(-1, values.shape[-1]))
        if not found:
            raise _without(rewritten)
        tables = (FeatureWeights(m, tuple(n), torch.cat(v, 1)) for m, (n, v) in found.items())
        title = f"{rewritten.spec.name} on {rewritten.model_name}"
        return cls(title, tuple(tables))

    def to_json(self) -> dict[str, Any]:
        """The numbers in the picture."""
        return {"title": self.title, "features": {t.measure: t.to_json() for t in self.tables}}

    def lines(self) -> list[str]:
        """A table for each kind of number."""
        found = [line for each in self.tables for line in ("", *each.lines())]
        return found[1:]

    def picture(self) -> str:
        """An SVG: a strip for each tap, a bar for each block, or a dot for each image."""
        strips = sum(len(each.taps) for each in self.tables)
        plot = Plot(_WIDTH, _TOP + strips * (_TALL + _GAP))
        plot.text(20, 30, self.title, size=17, bold=True)
        top = _TOP
        for each in self.tables:
            axis = Axis.round(0.0, float(each.values.max()), 0, 0, 4)
            for tap, columns in each.taps.items():
                _strip(plot, each, tap, columns, Axis(axis.low, axis.high, top + _TALL, top))
                top += _TALL + _GAP
        return plot.svg


def _strip(
    plot: Plot, weights: FeatureWeights, tap: str, columns: Sequence[tuple[str, int]], axis: Axis
) -> None:
    """One tap."""
    top, bottom = axis.end, axis.start
    kind = f", {plural(len(weights.values), 'image')} and their mean" if weights.by_image else ""
    title = f"{weights.measure}: {tap}" if tap else weights.measure
    plot.text(_LEFT, top - 10, f"{title}{kind}", bold=True)
    plot.upright(axis, _LEFT, _RIGHT, 4)
    step = (_RIGHT - _LEFT) / max(len(columns), 4)
    every = -(-len(columns) // 24)
    for number, (column, place) in enumerate(columns):
        middle = _LEFT + (number + 0.5) * step
        values = weights.values[:, place].tolist()
        if weights.by_image:
            _dots(plot, middle, step, values, axis)
        else:
            y = axis.at(values[0])
            plot.bar(middle - 0.36 * step, y, 0.72 * step, bottom - y, COLOURS[0])
            if len(columns) <= _NUMBERED:
                plot.text(middle, y - 3, _told(values[0]), size=10, anchor="middle")
        if number % every == 0:
            plot.text(middle, bottom + 15, column, size=11, ink=PALE, anchor="middle")
    plot.line(_LEFT, bottom, _RIGHT, bottom, ink=INK)
    if columns[0][0].isdigit():
        plot.text(_RIGHT, bottom + 30, "block", size=11, ink=PALE, anchor="end")


def _dots(plot: Plot, middle: float, step: float, values: Sequence[float], axis: Axis) -> None:
    """A dot for each image, of a colour of its own, side by side, and a line at their mean."""
    colours = palette(len(values)).tolist()
    for number, value in enumerate(values):
        x = middle + (number / max(len(values) - 1, 1) - 0.5) * 0.6 * step
        plot.dot(x, axis.at(value), hexadecimal(colours[number]), radius=1.8, clear=0.7)
    y = axis.at(sum(values) / len(values))
    plot.line(middle - 0.36 * step, y, middle + 0.36 * step, y, ink=INK, width=2)


def _weights(
    rewritten: Rewritten, insertion: Insertion, given: dict[str, tuple[Any, ...]]
) -> dict[str, torch.Tensor | None]:
    """What the pass of a module says."""
    method = rewritten.result.methods.of(insertion)
    try:
        module = rewritten.module.get_submodule(insertion.path)
    except AttributeError:  # lowering took it out
        return {}
    where = f"weights() at '{insertion.site.role}'"
    with torch.no_grad(), own_code(type(method), insertion.pass_name, where):
        return dict(method.weights(module, given.get(insertion.path, ())))


def _called_with(rewritten: Rewritten, images: torch.Tensor | None) -> dict[str, tuple[Any, ...]]:
    """What each inserted module is given for some images."""
    seen: dict[str, tuple[Any, ...]] = {}
    if images is None:
        return seen
    module = rewritten.module.eval()
    with torch.no_grad(), _watched(rewritten, seen):
        module(images)
    return seen


@contextmanager
def _watched(rewritten: Rewritten, seen: dict[str, tuple[Any, ...]]) -> Iterator[None]:
    """While it lasts, what inserted modules with names for what they read are given is kept."""

    def keep(path: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            seen[path] = args

        return hook

    paths = [i.path for i in rewritten.result.editor.insertions if i.reads]
    hooks = [rewritten.module.get_submodule(p).register_forward_pre_hook(keep(p)) for p in paths]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _without(rewritten: Rewritten) -> MatchError:
    """VR570, with what there is instead."""
    passes = list(dict.fromkeys(i.pass_name for i in rewritten.result.editor.insertions))
    has = f"its passes: {listing(passes)}" if passes else "no clause of it has a pass"
    return MatchError(
        "VR570",
        f"'{rewritten.spec.name}' weighs no features",
        notes=[has],
        suggestion="show a model of a spec such as synqt, vqt, head2toe, lst or side_tuning",
    )


def _number(value: float) -> float:
    return round(value, 6)


def _told(value: float) -> str:
    """A number in a few digits."""
    return f"{value:.0f}" if value == round(value) and abs(value) >= 1 else f"{value:.3g}"
