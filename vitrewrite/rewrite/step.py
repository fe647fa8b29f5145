"""What one clause of a spec did to a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..editing.clause import ClauseRef
from ..text import Told


@dataclass
class Step(Told):
    """What one clause did.

    Attributes:
        change: `+` puts something in, `~` changes what is trained, `-` takes something out.
        parameters: how many it added or trains.
        claims: what its pass claims.
        waived: by claim the sites at which it is not made, each with the reason.
    """

    clause: ClauseRef
    verb: str
    sites: tuple[str, ...]
    change: str
    parameters: int = 0
    claims: tuple[str, ...] = ()
    waived: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The step as data."""
        span = self.clause.span
        return {
            "clause": self.clause.text,
            "line": span.line if span else None,
            "change": self.change,
            "sites": list(self.sites),
            "parameters": self.parameters,
            "claims": list(self.claims),
            "waived": {claim: dict(sites) for claim, sites in self.waived.items()},
        }
