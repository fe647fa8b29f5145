"""A schedule of stochastic depth: one list by its rule in place of numbers of sixteen digits."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence

import torch

_LONG = re.compile(r"(?<![\w.])\d\.\d{10,}(?![\w.])")
_ROW = re.compile(r"(?<![\w\])])\((rates\[\d+\](?:, rates\[\d+\])+)\)")  # but of no call
MOST_TIMES = 6
"""How often a share is taken of a share: DynamicViT prunes three times."""
LEAST = 3
"""Fewer rates are no schedule."""


def rooted(line: str) -> str:
    """A statement with `0.7**2` for 0.48999999999999994, what is left of a share of a share."""
    return _LONG.sub(lambda found: _power(float(found[0])) or found[0], line)


def _power(value: float) -> str:
    """A number of at most two digits to a small power, if that is exactly the value."""
    for exponent in range(2, MOST_TIMES + 1):
        base = round(value ** (1 / exponent), 2)
        if base**exponent == value:
            return f"{base!r}**{exponent}"
    return ""


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
