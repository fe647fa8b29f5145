"""How text and values of others get into printed source: as a literal or as a comment, never else.

Everything that a file prints and that it did not make itself goes through here or through `names`.
"""

from __future__ import annotations

import enum
import math
import numbers
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import EmitError
from ..text import shown

# What a line of source cannot hold as it is: control characters (they end a comment, or a file),
# what other readers take for the end of a line, marks that reorder or hide text, and surrogates,
# which no file can hold. Tabs and spaces stay.
_ODD = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
_QUOTE = re.compile(r'"(?=""|\Z)')
_XML_ODD = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


def one_line(text: object) -> str:
    """Text on one line, for a comment or a title: what is odd in it is shown as an escape."""
    return _ODD.sub(_escaped, str(text))


def comment(text: object, width: int = 1000) -> list[str]:
    """A comment, one line for each line of the text, broken at spaces where it is too long."""
    found: list[str] = []
    for line in str(text).split("\n"):
        plain = f"# {one_line(line)}".rstrip()
        broken = textwrap.wrap(
            plain, width, subsequent_indent="#     ", break_long_words=False, break_on_hyphens=False
        )
        found += broken if len(plain) > width else [plain]
    return found


def docstring(text: str) -> str:
    """A literal in triple quotes whose value is exactly `text`.

    Lines stay lines; what could end the literal, or does not print, is escaped.
    """
    lines = text.replace("\\", "\\\\").split("\n")
    # Escaped is a quote with two behind it, or one at the end, which would be of the closing three.
    body = "\n".join(map(one_line, lines))
    safe = _QUOTE.sub(r"\\\g<0>", body)
    return f'"""{safe}"""'


def xml(text: object) -> str:
    """Text without the characters that no XML file can hold, not even as references."""
    return _XML_ODD.sub("\N{REPLACEMENT CHARACTER}", one_line(text))


@dataclass(frozen=True)
class Symbol:
    """A constant that is written as a name, such as `self.num_heads`, or in terms of one."""

    text: str


def plain(value: Any) -> Any:
    """The number of Python that a number of another library, or a member of an enum, stands for."""
    if isinstance(value, enum.Enum) and isinstance(value, (int, float, str)):
        return plain(value.value)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    return complex(value) if isinstance(value, numbers.Complex) else value


def constant(value: Any) -> str:
    """A literal.

    Raises:
        EmitError: VR803 if the value has none: its printed form need not be code.
    """
    if isinstance(value, Symbol):
        return value.text
    value = plain(value)
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else f'float("{value}")'
    if isinstance(value, complex):
        whole = math.isfinite(value.real) and math.isfinite(value.imag) and value.real != 0
        parts = f"complex({constant(value.real)}, {constant(value.imag)})"
        return repr(value) if whole and math.copysign(1, value.imag) > 0 else parts
    if value is ...:
        return "..."
    if value is None or isinstance(value, (bool, int, bytes)):
        return repr(value)
    return _of_torch(value) or _container(value)


LEAST_ROW = 8
"""Items of a tuple that are read at one glance, whatever they are."""


def repeated(value: Any) -> str:
    """A literal, of a long tuple as `(192, 768) * 12 + (192,)` where that says the same."""
    if type(value) is not tuple or len(value) < LEAST_ROW:
        return constant(value)
    texts = list(map(constant, value))
    for period in range(1, len(texts) // 3 + 1):
        if texts[period:] == texts[:-period]:
            times, left = divmod(len(texts), period)
            row = constant(value[:period])
            return f"{row} * {times}" + (f" + {constant(value[:left])}" if left else "")
    return constant(value)


def quoted(text: str) -> str:
    """A string literal, in double quotes where that takes no escape."""
    text = str.__str__(text)
    bare = repr(text) == f"'{text}'" and '"' not in text
    return f'"{text}"' if bare else repr(text)


def _of_torch(value: Any) -> str:
    if isinstance(value, torch.device):
        return f"torch.device({quoted(str(value))})"
    if isinstance(value, torch.Size):
        return f"torch.Size({constant(list(value))})"
    named = (torch.dtype, torch.memory_format, torch.layout)
    return str(value) if isinstance(value, named) else ""


_LEAST_RUN = 8
"""So many numbers that follow each other are a range."""


def _items(values: Sequence[Any]) -> list[str]:
    """The items of a tuple or list, runs of numbers as `*range(3, 33)`."""
    texts: list[str] = []
    i = 0
    while i < len(values):
        stop = i + 1
        while stop < len(values) and _follows(values[stop], values[stop - 1]):
            stop += 1
        run = values[i:stop]
        if len(run) >= _LEAST_RUN:
            texts.append(f"*range({run[0]}, {run[-1] + 1})")
        else:
            texts += map(constant, run)
        i = stop
    return texts


def _follows(value: Any, before: Any) -> bool:
    return type(value) is int and type(before) is int and value == before + 1


def _container(value: Any) -> str:
    if type(value) is tuple:
        items = _items(value)
        return f"({', '.join(items)}{',' if len(items) == 1 else ''})"
    if type(value) is list:
        return f"[{', '.join(_items(value))}]"
    if type(value) is dict:
        return f"{{{', '.join(f'{constant(k)}: {constant(v)}' for k, v in value.items())}}}"
    if isinstance(value, slice):
        return f"slice({', '.join(map(constant, (value.start, value.stop, value.step)))})"
    if isinstance(value, range):
        return f"range({value.start}, {value.stop}, {value.step})"
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    raise EmitError(
        "VR803", f"no source can be written for the constant {shown(value)} of type {shown(kind)}"
    )


class _Anything:
    """See `ANYTHING`."""

    def __repr__(self) -> str:
        return "ANYTHING"


ANYTHING: Any = _Anything()
"""Stands for the value that an instance of a class does not need."""


def same(first: Any, second: Any) -> bool:
    """Whether two constants are written alike: NaN is itself, -0.0 is not 0.0, nor 1 True."""
    return type(first) is type(second) and constant(first) == constant(second)
