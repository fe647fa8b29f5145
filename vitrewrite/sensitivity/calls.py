"""The selectors of a spec that measure; torch is not needed to see them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..language.model import Spec
from ..language.selectors import Call


def wanted_by(spec: Spec) -> list[Call]:
    """All of a spec, in its order."""
    return [c for clause in spec.clauses for c in calls(clause.sites)]


DEFAULTS: Mapping[str, Any] = {"samples": 800, "per": "sample"}
"""How a selector that does not say it is measured: the published rule."""


def way(call: Call | None) -> dict[str, Any]:
    """How a selector wants to be measured: `samples`, and `per` sample or batch."""
    given = dict(call.values) if call is not None else {}
    return {key: given.get(key, default) for key, default in DEFAULTS.items()}


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
