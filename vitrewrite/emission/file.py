"""`model.py`: the classes of a model with `build` and `load`, as one file."""

from __future__ import annotations

import ast
import functools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import nn

from .access import repeated, tie
from .copied import records
from .literals import constant, docstring, one_line, quoted, xml
from .source import Source
from .wrap import WIDTH, wrap

_IMPORTS = {
    "base64": "import base64", "math": "import math", "zlib": "import zlib",
    "OrderedDict": "from collections import OrderedDict", "fnmatch": "from fnmatch import fnmatch",
}  # fmt: skip


@functools.cache
def _environment() -> Environment:
    loader = PackageLoader("vitrewrite.emission", "templates")
    made = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True)
    made.filters["xml"] = lambda text: made.filters["e"](xml(text))
    return made


def render(template: str, **values: Any) -> str:
    """Fills one of the file templates."""
    return _environment().get_template(template).render(**values)


def model_file(
    root: nn.Module,
    source: Source,
    title: str,
    story: str,
    trainable: tuple[str, ...] | None = None,
    stated: str | None = None,
) -> str:
    """The text of `model.py`.

    Args:
        root: the tree that `source` was printed from.
        source: its classes.
        title: first line of the file's docstring.
        story: where it comes from.
        trainable: patterns of the parameters that are trained; None means all of them.
        stated: what the model is called with, as `input=` says it.
    """
    text = source.text
    used = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    packed = "unpack" in used
    rest, cast, others = _dtypes(root)
    used |= {"base64", "zlib", "torch"} if packed else set()
    used |= {"torch"} if cast else set()
    used |= {"fnmatch"} if trainable is not None or others else set()
    standard = [line for name, line in _IMPORTS.items() if name in used]
    torch_imports = ["import torch"] if "torch" in used else []
    if "F" in used:
        torch_imports.append("import torch.nn.functional as F")
    after = ["from torch.utils.checkpoint import checkpoint"] if "checkpoint" in used else []
    return render(
        "model.py.jinja", docstring=docstring(f"{one_line(title)}\n\n{story}\n"),
        imports=[*standard, *([""] if standard else []), *torch_imports, "from torch import nn",
                 *after],
        packed=packed, classes=text, root=source.root, rest=rest, cast=cast,
        others=bool(others), frozen=trainable == (), trainable=bool(trainable),
        constants="\n".join(_constants(source, stated, trainable, others)),
        ties=[tie(root, *pair) for pair in repeated(root, source.made)],
    )  # fmt: skip


def _constants(
    source: Source,
    stated: str | None,
    trainable: tuple[str, ...] | None,
    others: list[tuple[str, torch.dtype]],
) -> Iterator[str]:
    """The lines of what the file says of its model."""
    told = records(source.inserted)
    if told:
        yield "# What passes put in, for vitrewrite to know it again."
        yield from told
    if stated:
        yield from wrap(f"INPUT = {quoted(stated)}", WIDTH)
    if trainable:
        yield from wrap(f"TRAINABLE = {constant(trainable)}", WIDTH)
    if others:
        pairs = ", ".join(f"{quoted(pattern)}: {dtype}" for pattern, dtype in others)
        yield from wrap(f"DTYPES = {{{pairs}}}", WIDTH)


def _dtypes(root: nn.Module) -> tuple[str, bool, list[tuple[str, torch.dtype]]]:
    """The dtype of most tensors, whether that has to be said, and patterns of those with others.

    Layers make float32, which needs no word where everything is.
    """
    tensors = dict((*root.named_parameters(), *root.named_buffers()))
    floating = {n: t.dtype for n, t in tensors.items() if t.is_floating_point()}
    counts = Counter(floating.values())
    if counts.keys() <= {torch.float32}:
        return "torch.float32", False, []
    ((most, _),) = counts.most_common(1)
    others = [
        (pattern, dtype)
        for dtype in sorted(counts.keys() - {most}, key=str)
        for pattern in patterns((n for n, d in floating.items() if d == dtype), floating) or ()
    ]
    return str(most), True, others


def patterns(names: Iterable[str], all_names: Iterable[str]) -> tuple[str, ...] | None:
    """Short patterns that match exactly `names` among `all_names`; None if these are all."""
    names = set(names)
    others = set(all_names) - names
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
    name = re.sub(r"([*?[])", r"[\1]", name)  # which mean something in a pattern
    parts = name.split(".")
    words = [p for p in parts if not p.isdigit()]
    inside = [f"*.{w}.*" for w in words[:-1]] + [f"*.{words[-1]}"] if words else []
    return [name, re.sub(r"\.\d+\.", ".*.", name), *(f"{p}.*" for p in _prefixes(parts)), *inside]


def _prefixes(parts: list[str]) -> list[str]:
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _exact(pattern: str, others: set[str]) -> bool:
    return not any(fnmatch(o, pattern) for o in others)


def _hits(pattern: str, names: set[str]) -> int:
    return sum(fnmatch(n, pattern) for n in names)
