"""Layers between models that start from least squares, over as many images as there are.

Sums of products in float64 are all that is kept of the images, so memory does not hang on how many
there are: with X the rows of tokens that a layer takes and a column of ones behind them, and Y what
it is to yield, A = X'X and B = X'Y, and the layer is the solution of A W = B of least norm.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path as File
from typing import Any

import torch
from torch import nn

from ..data import Preprocessing, batches, open_data
from ..editing.fitting import modes_kept
from ..errors import RewriteError
from ..text import plural
from ..tracing.about import about, is_root
from ..tracing.paths import STITCHES, Way, Ways
from .rewritten import Rewritten

_BATCH = 25
Point = tuple[str, int]
"""A model, and how many of its pieces have run."""


@dataclass(frozen=True)
class Fit:
    """What a layer was solved from.

    Attributes:
        layer: its number.
        pairs: how many pairs of blocks share it; it has the mean of their solutions.
        rank: the smallest of their rows of tokens.
        width: what the rank is if no row is a sum of others: inputs and one for the bias.
    """

    layer: int
    pairs: int
    rank: int
    width: int

    def to_json(self) -> dict[str, Any]:
        """It as data."""
        return {"layer": self.layer, "pairs": self.pairs, "rank": self.rank, "width": self.width}


@dataclass
class _Sums:
    """Products of rows, image by image."""

    squares: dict[Point, torch.Tensor] = field(default_factory=dict)
    products: dict[tuple[Point, Point], torch.Tensor] = field(default_factory=dict)
    images: int = 0
    rows: int = 0

    def add(self, points: Mapping[Point, torch.Tensor], paths: Iterable[Way]) -> None:
        """Adds the rows of one batch."""
        extended: dict[Point, torch.Tensor] = {}
        for path in paths:
            source, target = (path.front, path.stop), (path.end, path.start)
            if source not in extended:
                rows = points[source]
                extended[source] = x = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
                self.squares[source] = self.squares.get(source, 0) + x.T @ x
            made = extended[source].T @ points[target]
            key = source, target
            self.products[key] = self.products.get(key, 0) + made


def calibrate(rewritten: Rewritten, images: Iterable[torch.Tensor] | str | File) -> None:
    """Solves the layers between models, in place.

    Args:
        rewritten: what a spec made that stitches models.
        images: in batches, or data by name, of which as many are taken as the clause says.

    Raises:
        RewriteError: VR512 without images, or for a spec that stitches no models.
        DataError: for data that cannot be read.
    """
    stitches = rewritten.result.editor.stitches
    if isinstance(images, (str, File)) and stitches is not None:
        found = open_data(str(images), Preprocessing.of(rewritten.base), measured=False).train
        taken = batches(found, _BATCH, seed=rewritten.seed, limit=stitches.samples)
        images = (batch.images for batch in taken)
    solve(rewritten, () if isinstance(images, (str, File)) else images)


@torch.no_grad()
def solve(rewritten: Rewritten, images: Iterable[torch.Tensor]) -> tuple[Fit, ...]:
    """Gives the layers between models the values that fit best, in place.

    Args:
        rewritten: what a spec made that stitches models.
        images: in batches, as many in each as fit into memory.

    Raises:
        RewriteError: VR512 without images, or for a spec that stitches no models.
    """
    root = rewritten.module
    paths = about(root).paths if is_root(root) else None
    if paths is None:
        raise RewriteError(
            "VR512", f"'{rewritten.spec.name}' stitches no models: there is nothing to calibrate"
        )
    between = [path for path in paths.table if path.layer is not None and not path.between]
    sums = _Sums()
    with modes_kept(root):
        root.eval()
        for batch in images:
            points = _points(root, paths, between, batch)
            sums.add(points, between)
            sums.images += len(batch)
            sums.rows += len(next(iter(points.values())))
    if not sums.images:
        raise RewriteError(
            "VR512",
            "least squares need images, and there are none",
            suggestion="give some, such as data=digits, or leave the layers as they are drawn",
        )
    fits = tuple(_solved(root, between, sums))
    _tell(rewritten, fits, sums)
    return fits


def _points(
    root: nn.Module, paths: Ways, between: Iterable[Way], images: torch.Tensor
) -> dict[Point, torch.Tensor]:
    """The rows of tokens [rows, channels] in float64 at the points where paths leave or enter."""
    wanted = {p for path in between for p in ((path.front, path.stop), (path.end, path.start))}
    like = next(root.parameters())
    images = images.to(device=like.device, dtype=like.dtype)
    found: dict[Point, torch.Tensor] = {}
    for base, pieces in paths.pieces.items():
        model: Any = root.get_submodule(base)
        x = model.begin(images)
        for number, piece in enumerate((None, *pieces)):
            x = x if piece is None else model.get_submodule(piece)(x)
            if (base, number) in wanted:
                found[base, number] = _rows(x, root, paths)
    return found


def _rows(x: torch.Tensor, root: nn.Module, paths: Ways) -> torch.Tensor:
    """A row for each token; the channels of a map are in front if layers convolve."""
    layer: Any = root.get_submodule(f"{STITCHES}.0")
    x = x.movedim(1, -1) if layer.weight.dim() == 4 else x
    return x.reshape(-1, x.shape[-1]).double()


def _solved(root: nn.Module, between: Iterable[Way], sums: _Sums) -> Iterable[Fit]:
    """Solves layer by layer; one that several pairs share gets the mean."""
    inverses = {point: _inverse(matrix) for point, matrix in sums.squares.items()}
    by_layer: dict[int, list[Way]] = {}
    for path in between:
        assert path.layer is not None
        by_layer.setdefault(path.layer, []).append(path)
    for number, shared in by_layer.items():
        layer: Any = root.get_submodule(f"{STITCHES}.{number}")
        solutions, ranks = [], []
        for path in shared:
            source, target = (path.front, path.stop), (path.end, path.start)
            inverse, rank = inverses[source]
            solutions.append(inverse @ sums.products[source, target])
            ranks.append(rank)
        whole = torch.stack(solutions).mean(0)
        layer.weight.copy_(whole[:-1].T.reshape(layer.weight.shape))
        layer.bias.copy_(whole[-1])
        yield Fit(number, len(shared), min(ranks), len(whole))


def _inverse(squares: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The inverse of a sum of squares where it has one, zero elsewhere, and its rank."""
    values, vectors = torch.linalg.eigh(squares)
    floor = values[-1] * len(values) * torch.finfo(values.dtype).eps
    kept = values > floor
    inverse = torch.where(kept, 1 / values.where(kept, torch.ones_like(values)), 0.0)
    return (vectors * inverse) @ vectors.T, int(kept.sum())


def _tell(rewritten: Rewritten, fits: tuple[Fit, ...], sums: _Sums) -> None:
    """Notes what the layers were solved from, and which of them had too few rows."""
    rewritten.calibration = {
        "images": sums.images, "rows": sums.rows, "layers": [fit.to_json() for fit in fits],
    }  # fmt: skip
    short = [fit for fit in fits if fit.rank < fit.width]
    if short:
        first = short[0]
        more = f" and of {len(short) - 1} more" if len(short) > 1 else ""
        rewritten.result.editor.warnings.append(
            f"least squares of {plural(sums.images, 'image')}: the rows at stitching layer "
            f"{first.layer}{more} have rank {first.rank} of {first.width}; the solution is the one "
            "of least norm"
        )
