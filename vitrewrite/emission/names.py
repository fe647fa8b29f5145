"""Names in printed source: what a file reserves, and which name a variable or a class gets."""

from __future__ import annotations

import builtins
import itertools
import keyword
import re
import unicodedata
from collections.abc import Iterable

from torch import fx

IMPORTED = frozenset(
    {"torch", "nn", "F", "math", "base64", "zlib", "fnmatch", "OrderedDict", "checkpoint"}
)
DEFINED = frozenset({"build", "load", "unpack", "load_file", "TRAINABLE", "DTYPES", "INPUT"})
CALLED = frozenset({
    "abs", "complex", "enumerate", "float", "getattr", "int", "list", "max", "min", "range",
    "round", "slice", "super", "tuple", "zip", "any", "ValueError", "None", "True", "False",
})  # fmt: skip
"""Built-in names that printed code uses."""
RESERVED = frozenset({"self", *IMPORTED, *DEFINED, *keyword.kwlist, *dir(builtins)})
"""What no class, function or argument of a constructor may be called."""
_TAKEN = RESERVED - DEFINED - {"input", "len", "base64", "zlib", "fnmatch", "OrderedDict"}


def is_name(text: str) -> bool:
    """Whether the text is an identifier that means itself, wherever it stands.

    Not so are keywords, names that Python writes in another way (a ligature becomes two letters),
    and those with two underscores in front, which a class makes its own.
    """
    plain = text.isidentifier() and not keyword.iskeyword(text) and text.isprintable()
    return plain and unicodedata.normalize("NFKC", text) == text and not text.startswith("__")


def identifier(text: str, otherwise: str) -> str:
    """The text where it is a name; else what is left of it without what no name can have."""
    if is_name(text):
        return text
    parts = re.sub(r"\W", "_", unicodedata.normalize("NFKC", text)).strip("_")
    for name in (parts, f"{otherwise}_{parts}", f"{parts}_"):
        if parts and is_name(name):
            return name
    return otherwise


class NameScope:
    """The classes and functions of one file, each of another name."""

    def __init__(self, reserved: Iterable[str] = ()) -> None:
        self.taken = {*RESERVED, "_", *reserved}

    def take(self, wish: str, otherwise: str) -> str:
        """A name that nothing else has: the wish, or with a number behind it."""
        stem = identifier(wish, otherwise)
        numbered = (f"{stem}{i}" for i in itertools.count(2))
        name = next(n for n in itertools.chain((stem,), numbered) if n not in self.taken)
        self.taken.add(name)
        return name


class Names:
    """Which variable holds which node, statement by statement.

    `last_use[node]` is the number of the last statement that reads the node; a name is free again
    for a statement that is not earlier.
    """

    def __init__(self, last_use: dict[fx.Node, int]) -> None:
        self.last_use = last_use
        self.holder: dict[str, fx.Node] = {}
        self.name_of: dict[fx.Node, str] = {}

    def take(self, node: fx.Node, wishes: Iterable[str | None], statement: int) -> str:
        """A name for `node`, assigned in `statement`."""
        fit = [w for w in wishes if w and w != "_" and is_name(w) and w not in _TAKEN]
        for wish in itertools.chain(fit, _numbered(fit[0] if fit else "y")):
            if self.free(wish, statement):
                self.holder[wish] = node
                self.name_of[node] = wish
                return wish
        raise AssertionError

    def free(self, name: str, statement: int) -> bool:
        """Whether nothing later needs what `name` holds."""
        held = self.holder.get(name)
        return held is None or self.last_use.get(held, -1) <= statement


def plural(name: str) -> str:
    """A name for a list or tuple of values that are called `name`."""
    if len(name) < 2:
        return "values"
    return f"all_{name}" if name.endswith("s") else f"{name}s"


def _numbered(stem: str) -> Iterable[str]:
    stem = stem.rstrip("0123456789") or stem
    return (f"{stem}{i}" for i in range(2, 1000))
