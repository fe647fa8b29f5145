"""Several models in one tree: the anatomy of each, whose sites start at its name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .sites import Anatomy, Place, StreamFacts


@dataclass(frozen=True)
class Anchors:
    """The models that are stitched, as one site of the tree that holds them.

    Attributes:
        names: of the bases, in the order of the clause.
    """

    role: str
    names: tuple[str, ...]


def with_roles(anatomy: Anatomy, base: str) -> Anatomy:
    """The anatomy of a base whose roles start at its name; paths do so already."""
    found: Anatomy = _Renamer(f"{base}.").renamed(anatomy)
    return dataclasses.replace(found, base=base)


class _Renamer:
    """Puts a prefix in front of roles; what was one object stays one."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.made: dict[int, tuple[Any, Any]] = {}  # with the original, whose id stays taken

    def renamed(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(self.renamed, value))
        if not dataclasses.is_dataclass(value) or isinstance(value, (Place, StreamFacts)):
            return value
        if id(value) not in self.made:
            self.made[id(value)] = value, self._renamed(value)
        return self.made[id(value)][1]

    def _renamed(self, value: Any) -> Any:
        changes = {f.name: self.renamed(getattr(value, f.name)) for f in dataclasses.fields(value)}
        role = changes.get("role")
        if isinstance(role, str) and not role.startswith(self.prefix):
            changes["role"] = self.prefix + role
        return type(value)(**changes)


def joined(anatomies: Mapping[str, Anatomy]) -> Anatomy:
    """All sites of several models, for what counts and lists them; their streams stay apart."""
    each = tuple(anatomies.values())
    calls = {key: places for one in each for key, places in one.calls.items()}
    return Anatomy(
        model=" and ".join(anatomies),
        blocks=tuple(block for one in each for block in one.blocks),
        stream=each[-1].stream,
        patch_embed=None,
        norm=None,
        head=tuple(site for one in each for site in one.head),
        linears=tuple(site for one in each for site in one.linears),
        norms=tuple(site for one in each for site in one.norms),
        convs=tuple(site for one in each for site in one.convs),
        notes=tuple(f"{name}: {note}" for name, one in anatomies.items() for note in one.notes),
        calls=calls,
        fused=tuple(path for one in each for path in one.fused),
        bases=dict(anatomies),
    )
