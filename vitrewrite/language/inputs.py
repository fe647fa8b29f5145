"""`input=1x3x64x64`: what a model is called with, as specs, command lines and files state it.

The batch stands first. Several inputs are `1x3x64x64,1x10`, a list in a spec; another dtype than
that of the model's weights follows a colon, as in `1x10:int64`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from vitrewrite.errors import Span, SpecError
from vitrewrite.text import shown

from .values import Value

INPUT = "input"
DTYPES = (
    *("float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8"),
    *("bool", "complex64"),
)
_SHAPE = re.compile(r"(\d{1,9}(?:x\d{1,9})*)(?::(\w+))?", re.ASCII)
_MOST = 1 << 31
_HELP = "the batch comes first, as in input=1x3x224x224, or input=1x3x224x224,1x10 for two inputs"


class Shape(NamedTuple):
    """One input: its sizes, and its dtype, which is the model's own if it is not said."""

    sizes: tuple[int, ...]
    dtype: str = ""

    def __str__(self) -> str:
        return "x".join(map(str, self.sizes)) + (f":{self.dtype}" if self.dtype else "")


def show_shapes(shapes: Sequence[Shape]) -> str:
    """The text that `read_shapes` reads."""
    return ",".join(map(str, shapes))


def read_shapes(text: str) -> tuple[Shape, ...]:
    """The inputs that a text states.

    Raises:
        ValueError: it states none; with what is wrong, and what was probably meant.
    """
    items = [item.strip() for item in text.strip().strip("[]()").split(",")]
    if len(items) > 1 and all(item.isdecimal() and item.isascii() for item in items):
        items = ["x".join(items)]  # [1, 3, 64, 64]
    return tuple(map(_read, items))


def _read(item: str) -> Shape:
    match = _SHAPE.fullmatch(item.strip("\"'"))
    if match is None:
        raise ValueError(f"{shown(item, 40)} is no shape", _HELP)
    sizes, dtype = tuple(map(int, match[1].split("x"))), match[2] or ""
    if dtype and dtype not in DTYPES:
        raise ValueError(f"no dtype {shown(dtype)}", f"dtypes: {', '.join(DTYPES)}")
    if min(sizes) < 1 or math.prod(sizes) > _MOST:
        raise ValueError(f"{shown(item, 40)} is no size of an input", _HELP)
    if len(sizes) < 2:
        raise ValueError(f"{shown(item, 40)} has no batch", _HELP)
    if len(sizes) == 3 and sizes[0] != 1:  # an image without its batch, far likelier than a batch
        raise ValueError(
            f"{shown(item, 40)} could be an image, or {sizes[0]} sequences",
            f"the batch comes first: write input=1x{match[1]} for one image",
        )
    return Shape(sizes, dtype)


def checked(value: Value, span: Span) -> str:
    """The text of what a spec or an override states.

    Raises:
        SpecError: VR231 if it states no input.
    """
    items = value if isinstance(value, tuple) else (value,)
    text = ",".join(map(str, items))
    try:
        if not all(type(item) in (int, str) for item in items):
            raise ValueError(f"{shown(text, 40)} is no shape", _HELP)
        return show_shapes(read_shapes(text))
    except ValueError as error:
        message, help_ = error.args
        raise SpecError(
            "VR231", f"input is not known: {message}", span=span, suggestion=help_
        ) from None
