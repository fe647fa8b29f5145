"""`model.py`: the classes of a model with `build` and `load`, as one file."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from fnmatch import fnmatch
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import nn

from .source import Source
from .tables import PACKED

_IMPORTS = (
    ("base64", "import base64", PACKED),
    ("math", "import math", "math."),
    ("zlib", "import zlib", PACKED),
    ("fnmatch", "from fnmatch import fnmatch", None),
)


@functools.cache
def _environment() -> Environment:
    loader = PackageLoader("vitrewrite.emission", "templates")
    return Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True)


def render(template: str, **values: Any) -> str:
    """Fills one of the file templates."""
    return _environment().get_template(template).render(**values)


def model_file(
    root: nn.Module, source: Source, title: str, story: str,
    trainable: tuple[str, ...] | None = None,
) -> str:  # fmt: skip
    """The text of `model.py`.

    Args:
        root: the tree that `source` was printed from.
        source: its classes.
        title: first line of the file's docstring.
        story: where it comes from.
        trainable: patterns of the parameters that are trained, or None for all of them.
    """
    text = source.text
    standard = [
        line
        for name, line, mark in _IMPORTS
        if (mark and mark in text) or (name == "fnmatch" and trainable)
    ]
    torch_imports = ["import torch"] if re.search(r"\btorch\.", text) else []
    if "F." in text:
        torch_imports.append("import torch.nn.functional as F")
    imports = [*standard, *([""] if standard else []), *torch_imports, "from torch import nn"]
    listed = ", ".join(f'"{t}"' for t in trainable or ())
    shown = f"({listed}{',' if len(trainable or ()) == 1 else ''})"
    return render(
        "model.py.jinja", title=title, story=story, imports=imports, packed=PACKED in text,
        classes=text, root=source.root, trainable=shown if trainable else "",
        frozen=trainable == (), ties=_ties(root),
    )  # fmt: skip


def _ties(root: nn.Module) -> list[tuple[str, str]]:
    """Parameters with two names: the second is made the first again after construction."""
    first: dict[int, str] = {}
    ties = []
    for name, parameter in root.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            ties.append((_attribute(name), _attribute(first[id(parameter)])))
        first.setdefault(id(parameter), name)
    return ties


def _attribute(path: str) -> str:
    return re.sub(r"\.(\d+)", r"[\1]", path)


def patterns(names: Iterable[str], all_names: Iterable[str]) -> tuple[str, ...] | None:
    """Short patterns that match exactly `names` among `all_names`; None if these are all."""
    names, others = set(names), set(all_names) - set(names)
    if not others:
        return None
    left, found = set(names), []
    while left:
        name = min(left)
        best = max(_candidates(name), key=lambda p: (_exact(p, others) * _hits(p, left), -len(p)))
        found.append(best)
        left -= {n for n in left if fnmatch(n, best)}
    return tuple(found)


def _candidates(name: str) -> list[str]:
    parts = name.split(".")
    words = [p for p in parts if not p.isdigit()]
    inside = [f"*.{w}.*" for w in words[:-1]] + [f"*.{words[-1]}"]
    return [name, re.sub(r"\.\d+\.", ".*.", name), *(f"{p}.*" for p in _prefixes(parts)), *inside]


def _prefixes(parts: list[str]) -> list[str]:
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _exact(pattern: str, others: set[str]) -> bool:
    return not any(fnmatch(o, pattern) for o in others)


def _hits(pattern: str, names: set[str]) -> int:
    return sum(fnmatch(n, pattern) for n in names)
