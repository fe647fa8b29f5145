"""A pass that is to be checked, and the clauses that it can stand in on a tiny model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..catalog.signatures import OptionInfo, PassInfo
from ..language import Spec, parse_spec
from ..language.values import show

PLACES = {
    "linear": ("blocks[*].mlp.fc2", "blocks[*].attn.{q, v}"),
    "attention": ("blocks[*].attn", "blocks[0].attn"),
    "mlp": ("blocks[*].mlp",),
    "block": ("blocks[*]", "blocks[0]"),
    "entries": ("sensitive(budget=2K, scale=4K)",),
    "norm": ("blocks[*].norm1",),
    "conv": ("patch_embed.proj",),
    "branch": ("blocks[*].mlp_branch", "blocks[*].attn_branch"),
    "head": ("head",),
}
"""Where a pass is tried, by what it attaches to; the tiny model has no decoder."""


@dataclass(frozen=True)
class Subject:
    """A pass that is checked.

    Attributes:
        info: what it declares.
        written: how a spec names it.
        folder: what a file in that is relative to.
        given: options as `rank=4`.
        sites: where to put it; by default where it says that it attaches to.
    """

    info: PassInfo
    written: str
    folder: Path
    given: tuple[str, ...] = ()
    sites: str | None = None

    def specs(self, **options: Any) -> Iterator[Spec]:
        """The specs that try it, some of which may not fit.

        Args:
            options: to set, besides those that are given.
        """
        for text in self._clauses(options):
            yield parse_spec(f"{text}\n", folder=self.folder)

    def _clauses(self, options: dict[str, Any]) -> Iterator[str]:
        set_here = {**dict(o.split("=", 1) for o in self.given), **self._needed()}
        set_here |= {k: show(v) for k, v in options.items()}
        call = f"{self.written}({', '.join(f'{k}={v}' for k, v in set_here.items())})"
        places = [p for kind in self.info.attaches for p in PLACES.get(kind, ())]
        for site in [self.sites] if self.sites else places:
            for verb in self.info.verbs:
                yield _clause(verb, call, site)

    def _needed(self) -> dict[str, str]:
        """Values for options that have to be set."""
        given = {o.split("=", 1)[0] for o in self.given}
        infos = self.info.options.values()
        return {o.name: show(_some(o)) for o in infos if o.required and o.name not in given}


def _some(option: OptionInfo) -> Any:
    if option.choices:
        return option.choices[0]
    made: Any = {"bool": True, "str": "x"}.get(option.type, option.minimum or option.maximum or 1)
    made = int(made) if option.type == "int" else made
    return (made,) if option.many else made


def _clause(verb: str, call: str, sites: str) -> str:
    if verb == "replace":
        return f"replace {sites} with {call}"
    if verb in ("prepend", "add"):
        return f"{verb} {call} to {sites}"
    if verb == "drop":
        return f"drop {sites} by {call}"
    place = verb.removeprefix("insert").strip() or "at"
    return f"insert {call} {place} {sites}"
