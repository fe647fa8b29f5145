"""The pass object that a clause of a spec names."""

from __future__ import annotations

from .. import catalog
from ..catalog.declare import Pass
from ..language.model import Clause


def method_of(clause: Clause) -> Pass:
    """The pass of a clause with the options that the clause gives."""
    assert clause.use is not None
    return catalog.load(clause.use.name)(**clause.use.values)
