"""A claim about a model with what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import VerifyError

_STATES = {True: "ok", False: "FAILS", None: "open"}


@dataclass(frozen=True)
class Check:
    """One claim, whether it holds, and what was measured.

    Attributes:
        holds: None where it could not be checked; `note` says why.
    """

    name: str
    holds: bool | None
    measured: Any
    note: str = ""

    def __str__(self) -> str:
        shown = f"{self.measured:.3g}" if isinstance(self.measured, float) else str(self.measured)
        return f"{self.name}: {shown}" + (f" ({self.note})" if self.note else "")

    def __repr__(self) -> str:
        return f"<{_STATES[self.holds]} {self}>"

    def to_json(self) -> dict[str, Any]:
        """The check as data."""
        return {
            "check": self.name, "holds": self.holds, "measured": self.measured, "note": self.note,
        }  # fmt: skip

    def error(self) -> VerifyError:
        """The failed check as an error."""
        message = f"{self.name}: measured {self.measured}"
        return VerifyError("VR503", message, notes=[self.note], measured=self.measured)
