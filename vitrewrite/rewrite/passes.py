"""The pass object that a clause of a spec names."""

from __future__ import annotations

from .. import catalog
from ..catalog.declare import Pass
from ..catalog.own_code import file_of, own_code
from ..errors import SpecError
from ..language.model import Clause


def method_of(clause: Clause) -> Pass:
    """The pass of a clause with the options that the clause gives.

    Raises:
        SpecError: VR240 for a class that carries nothing out, VR420 for one that cannot be made.
    """
    assert clause.use is not None
    found = catalog.load(clause.use.key)
    if found.rewrite is Pass.rewrite:
        message = f"pass '{clause.use.name}' has no rewrite(), which carries it out at a site"
        raise SpecError("VR240", message, span=clause.span, notes=[f"in {file_of(found)}"])
    with own_code(found, clause.use.name, "its constructor", clause.span):
        return found(**clause.use.values)
