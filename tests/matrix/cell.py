"""One method on one architecture: applied, verified, lowered and verified again."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

import vitrewrite as vr
from tests.lowering.models import fill
from tests.matrix.architectures import ARCHITECTURES, built, example
from tests.matrix.methods import METHODS

# The model lacks the site, or the pass or a verb says why it is not made for it.
REFUSALS = ("VR301", "VR302", "VR304", "VR401", "VR403", "VR406", "VR410", "VR411", "VR413")


@dataclass(frozen=True)
class Cell:
    """What came out.

    Attributes:
        outcome: `works`, `refused` or `fails`.
        why: the code and message of a refusal or failure.
        spec: the clauses that were applied.
    """

    method: str
    architecture: str
    outcome: str
    why: str = ""
    spec: str = ""

    def to_dict(self) -> dict[str, str]:
        """The cell as data."""
        return asdict(self)


def examine(method: str, architecture: str) -> Cell:
    """Tries the clauses of a method on an architecture."""
    warnings.simplefilter("ignore")  # of the libraries
    refused: list[Cell] = []
    for clauses in METHODS[method]:
        cell = _tried(method, architecture, clauses)
        if cell.outcome != "refused":
            return cell
        refused.append(cell)
    return refused[-1]


def _tried(method: str, architecture: str, clauses: str) -> Cell:
    model = built(architecture)
    spec = f"{clauses}train optional head\n"
    try:
        plan = vr.plan(spec, model, example=example(architecture))
        if not plan.measures.params.trainable and "drop" not in spec:
            return Cell(method, architecture, "refused", "nothing is trained: no head", spec)
    except vr.VitrewriteError as error:
        known = error.code in REFUSALS
        why = f"{error.code} {error.message}"
        return Cell(method, architecture, "refused" if known else "fails", why, spec)
    try:
        for _ in _verified(spec, model, architecture):
            pass
    except Exception as error:  # whatever it is, it is not what a plan promised
        return Cell(method, architecture, "fails", f"{type(error).__name__}: {error}", spec)
    return Cell(method, architecture, "works", "", spec)


def _verified(spec: str, model: nn.Module, architecture: str) -> Iterator[Any]:
    """At initialisation, with a delta of noise, and lowered."""
    rewritten = vr.apply(spec, model, example=example(architecture))
    yield vr.verify(rewritten, graphs=False)
    yield vr.verify(vr.lower(fill(rewritten)), graphs=False)


def cells() -> list[tuple[str, str]]:
    """All of the matrix, row by row."""
    return [(method, architecture) for method in METHODS for architecture in ARCHITECTURES]


def one(cell: tuple[str, str]) -> Cell:
    """`examine` in a process of its own."""
    torch.set_num_threads(1)
    return examine(*cell)
