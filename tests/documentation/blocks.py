"""The blocks of a page, and what each of them is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        page: the file that it stands in, from the root of the tree.
        line: where it starts.
        language: what is written behind the fence.
        text: what is in it.
    """

    page: str
    line: int
    language: str
    text: str

    @property
    def kind(self) -> str:
        """`commands`, `python`, `json`, `make`, `mermaid`, or `spec`, which all others are."""
        if self.language in ("python", "json", "mermaid"):
            return self.language
        first = self.text.partition(" ")[0]
        return {"$": "commands", "vitrewrite": "commands", "make": "make"}.get(first, "spec")


@dataclass(frozen=True)
class Command:
    """A command line, and what a page shows that it prints."""

    line: str
    shown: str


def pages() -> list[str]:
    """README, the pages of `docs`, and how to contribute."""
    own = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
    return ["README.md", *own, "CONTRIBUTING.md"]


def blocks(page: str) -> list[Block]:
    """All blocks of a page in their order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = _FENCE.finditer(text)
    return [Block(page, text.count("\n", 0, m.start()) + 1, m[1], m[2]) for m in found]


def commands(text: str) -> Iterator[Command]:
    """The commands of a block; comments behind them are for readers."""
    line, shown = "", ""
    for each in text.splitlines():
        if each.startswith(("$ ", "vitrewrite ")):
            if line:
                yield Command(line, shown)
            line, shown = each.removeprefix("$ ").partition("  #")[0].rstrip(), ""
        else:
            shown += each + "\n"
    yield Command(line, shown)
