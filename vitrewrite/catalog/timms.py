"""Names of timm's models, without importing timm, which takes seconds.

timm registers a model where its function is decorated, so its sources are the index: they are
always those of the version that is installed, and are read in a hundredth of a second.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

_REGISTERED, _DEPRECATED = b"\n@register_model\n", b"\nregister_model_deprecations(__name__, "
_FUNCTION = re.compile(rb"(?:@.*\n)*def (\w+)\(")


class _Names(NamedTuple):
    """Names of models, and older names that stand for some of them."""

    models: set[str]
    deprecated: set[str]


def timm_models() -> list[str]:
    """What `timm.list_models()` lists, in its order."""
    if "timm" not in sys.modules and (found := _read()).models:
        return sorted(found.models - found.deprecated, key=_natural)
    import timm

    return timm.list_models()


def is_timms(name: str) -> bool:
    """Whether timm knows a model by that name, with or without a tag of weights."""
    if "timm" not in sys.modules and (found := _read()).models:
        return name.partition(".")[0] in found.models | found.deprecated
    import timm  # code of the user may have registered others, too

    return timm.is_model(name)


def _read() -> _Names:
    found = _Names(set(), set())
    package = importlib.util.find_spec("timm")
    for folder in (package and package.submodule_search_locations) or ():
        for file in Path(folder, "models").glob("*.py"):
            text = file.read_bytes()
            functions = map(_FUNCTION.match, text.split(_REGISTERED)[1:])
            found.models.update(each[1].decode() for each in functions if each)
            for part in text.split(_DEPRECATED)[1:]:
                found.deprecated.update(_keys(part[: part.index(b"\n}") + 2].decode()))
    return found


def _keys(table: str) -> Collection[str]:
    names: dict[str, str | None] = ast.literal_eval(table)
    return names.keys()


def _natural(name: str) -> list[int | str]:
    """Numbers in a name count as numbers, as timm sorts."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name.lower())]
