"""The selectors of a spec that measure; torch is not needed to see them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..language.model import Spec
from ..language.selectors import Call


def wanted_by(spec: Spec) -> list[Call]:
    """All of a spec, in its order."""
    return [c for clause in spec.clauses for c in calls(clause.sites)]


def calls(selector: Any) -> Iterator[Call]:
    """The parts of a selector that measure."""
    if isinstance(selector, Call):
        yield selector
    for name in ("selector", "start", "within"):
        if (inner := getattr(selector, name, None)) is not None:
            yield from calls(inner)
    for name in ("parts", "removed"):
        for part in getattr(selector, name, ()):
            yield from calls(part)
