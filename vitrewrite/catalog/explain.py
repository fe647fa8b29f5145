"""What the error codes mean, for `vitrewrite explain CODE`; the texts are in `explanations.md`."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vitrewrite.errors import UsageError
from vitrewrite.text import did_you_mean, shown

_FILE = Path(__file__).with_name("explanations.md")
_SECTION = re.compile(r"^## (VR\d{3}) (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Explanation:
    """What a code means, an example, and what to do."""

    code: str
    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.code}: {self.title}\n\n{self.text}"


@functools.cache
def explanations() -> Mapping[str, Explanation]:
    """All explanations by code."""
    _, *parts = _SECTION.split(_FILE.read_text(encoding="utf-8"))
    sections = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    return {code: Explanation(code, title, text.strip()) for code, title, text in sections}


def explain_code(code: str) -> Explanation:
    """The explanation of a code, in upper or lower case.

    Raises:
        UsageError: VR901 if there is no such code.
    """
    found = explanations().get(code.upper())
    if found is None:
        suggestion = did_you_mean(code.upper(), explanations())
        raise UsageError("VR901", f"no error has the code {shown(code)}", suggestion=suggestion)
    return found
