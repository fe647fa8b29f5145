"""What a part of a model needs of its tokens, told from the operation that a rewrite broke.

Positions and masks are made for the tokens of the original model: a grid of patches behind some
prefix tokens. An operation that still wants them shows which by what it is and by its shapes.
"""

from __future__ import annotations

from itertools import pairwise

from ..editing.measure import BrokenError, Shape
from ..editing.stream import Tokens

_RESHAPES = {"view", "reshape", "unflatten", "unfold", "expand", "split", "chunk"}


def needed(error: BrokenError, tokens: Tokens) -> str:
    """In one line, what the part that broke does with the tokens, and what it gets.

    Args:
        error: where it broke.
        tokens: what the original model knows of its tokens.
    """
    rows, columns = tokens.grid or (0, 0)
    patches = rows * columns
    if error.operation in _RESHAPES:
        others = {n for shape in error.shapes for n in shape} - {1, *error.numbers}
        given = f", and gets {others.pop()} tokens" if len(others) == 1 else ""
        if tokens.grid and _holds(error.numbers, tokens.grid):
            return f"'{error.path}' puts the tokens back on their grid, {rows}x{columns}{given}"
        return f"'{error.path}' divides the tokens into parts of fixed size{given}"
    for fixed, other in _pairs(error.shapes):
        for count, what in ((patches, "patches"), (tokens.prefix + patches, "tokens")):
            if count and (told := _positions(error, fixed, other, count, what)):
                return told
    given = " and ".join("x".join(map(str, shape)) for shape in error.shapes) or "numbers"
    return f"'{error.path}' does not take what it is given now: {error.operation} of {given}"


def _pairs(shapes: tuple[Shape, ...]) -> list[tuple[Shape, Shape]]:
    return [(a, b) for i, a in enumerate(shapes) for j, b in enumerate(shapes) if i != j]


def _positions(error: BrokenError, fixed: Shape, other: Shape, count: int, what: str) -> str | None:
    """What an operand made for `count` tokens is, if `fixed` is one and `other` has others."""
    if min(len(fixed), len(other)) < 2 or fixed[-2] != count:
        return None
    rotates = error.operation in ("mul", "mul_")
    is_square = fixed[-1] == count and not rotates
    differing = [n for n in (other[-2:] if is_square else other[-2:-1]) if n not in (1, count)]
    if not differing:
        return None
    if is_square:
        kind = f"adds a relative position bias, which is for a grid of {count} {what}"
    elif rotates:
        kind = f"turns queries and keys by rotary positions, one for each of {count} {what}"
    elif error.operation in ("add", "add_", "iadd"):
        kind = f"adds positions, one for each of {count} {what}"
    else:
        kind = f"uses what was made for {count} {what}"
    return f"'{error.path}' {kind}, and gets {differing[0]} tokens"


def _holds(numbers: tuple[int, ...], grid: tuple[int, int]) -> bool:
    return any(pair == grid for pair in pairwise(numbers))
