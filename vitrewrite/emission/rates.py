"""A schedule of stochastic depth: one list by its rule in place of numbers of sixteen digits."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence

import torch

_LONG = re.compile(r"(?<![\w.])\d\.\d{10,}(?![\w.])")
_ROW = re.compile(r"(?<![\w\])])\((rates\[\d+\](?:, rates\[\d+\])+)\)")  # but of no call
LEAST = 3
"""Fewer rates are no schedule."""


def scheduled(lines: Sequence[str], taken: Container[str]) -> list[str]:
    """Statements with `rates[i]` for numbers that rise evenly, after one that makes the list."""
    values = sorted({float(found) for line in lines for found in _LONG.findall(line)})
    if len(values) < LEAST or "rates" in taken:
        return list(lines)
    top = float(f"{values[-1]:.6g}")
    for count in range(len(values), len(values) + 3):
        rates = torch.linspace(0, top, count, device="cpu").tolist()
        if set(values) <= set(rates):
            made = f'rates = torch.linspace(0, {top!r}, {count}, device="cpu").tolist()'
            return [made, *(_ROW.sub(_slice, _written(line, rates)) for line in lines)]
    return list(lines)


def _written(line: str, rates: Sequence[float]) -> str:
    return _LONG.sub(lambda found: f"rates[{rates.index(float(found[0]))}]", line)


def _slice(row: re.Match[str]) -> str:
    """`rates[1:4]` for `(rates[1], rates[2], rates[3])`."""
    numbers = [int(n) for n in re.findall(r"\[(\d+)\]", row[1])]
    plain = numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    return f"rates[{numbers[0]}:{numbers[-1] + 1}]" if plain else row[0]
