"""The lines of a forward that refuse what it was not captured for."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

from torch import fx

from ..tracing.guards import one_of
from ..tracing.nodes import arg, operand
from ..tracing.notes import VALUE
from .expressions import CALL, Text
from .literals import constant
from .wrap import WIDTH, wrap


def raised(condition: str, sides: list[str], width: int) -> list[str]:
    """`raise ValueError(...)` with what must be true of the sizes, and what they are."""
    told = f"captured for sizes where {condition}"
    got = [c for c in sides if not _UNQUOTABLE & set(c) and len(c) < width - 16]
    values = " and ".join(f"{{{code}}}" for code in got)
    whole = f'raise ValueError(f"{told}, got {values}")'
    if got and len(whole) <= width and not _UNQUOTABLE & set(condition):
        return [whole]
    words = textwrap.wrap(f"{told}, got " if got else told, width - 8, drop_whitespace=False)
    parts = [*map(constant, words), *([f'f"{values}"'] if got else [])]
    return ["raise ValueError(", *(f"    {part}" for part in parts), ")"]


_UNQUOTABLE = set('"\\{}')  # what the braces of an f-string cannot hold


def input_check(
    node: fx.Node, of: Callable[[Any], Text], what: str = "captured for {want}"
) -> list[str]:
    """`if x.shape[2:] != (224, 224): raise ...`."""
    reads, captured = arg(node, 0), arg(node, 1)
    sizes = [of(r).code for r in reads]
    tensor = operand(reads[0])
    rank = VALUE.of(tensor).dim()
    owner = of(tensor).code
    dims = [r.args[1] for r in reads]
    tail = dims == list(range(rank - len(dims), rank))
    shape = f"{owner}.shape[{dims[0]}:]" if tail else f"({', '.join(sizes)},)"
    want = "x".join(map(str, captured))
    got = "x".join(f"{{{owner}.shape[{d}]}}" for d in dims)
    literal = f"({', '.join(map(str, captured))}{',' if len(captured) == 1 else ''})"
    text = what.replace("{want}", want)
    error = wrap(f'raise ValueError(f"{text}, got {got}")', WIDTH - 12)
    return [f"if {shape} != {literal}:", *(f"    {line}" for line in error)]


def dtype_check(node: fx.Node, of: Callable[[Any], Text]) -> list[str]:
    """`if x.dtype != torch.float32: raise ...`."""
    captured = arg(node, 1)
    dtype = of(arg(node, 0)).within(CALL)
    unlike = f"!= {captured[0]}" if len(captured) == 1 else f"not in {of(captured).code}"
    error = wrap(f'raise ValueError(f"{one_of(captured)}, got {{{dtype}}}")', WIDTH - 12)
    return [f"if {dtype} {unlike}:", *(f"    {line}" for line in error)]
