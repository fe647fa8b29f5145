"""What is known of a captured model beside its graphs: one record, at the root of its tree.

`trace` writes it, `realise` adds the classes that it printed; every later stage reads it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from ..text import Told
from .portable import packed, unpacked
from .template import Template

if TYPE_CHECKING:
    from .paths import Ways

_KEY = "about"


@dataclass(frozen=True, eq=False)
class About(Told):
    """What a root knows of its model; never changed, `tell` puts another in its place.

    Attributes:
        example: what it was captured with, on meta: a tensor, a tuple, or a dict of keywords.
        constants: arguments that it was captured with and that are no tensors, by name.
        notes: what a user should know about how it was captured, a line each.
        helpers: what the model told of itself, as timm's models do.
        programs: how buffers that no state dict has are computed, by path.
        pretrained_cfg: timm's record of the images that it takes.
        config: Hugging Face's configuration.
        classes: the template of each class that was printed, by name.
        paths: ways through the models that the tree holds, if it holds several.
    """

    example: Any
    constants: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    helpers: Mapping[str, Any] = field(default_factory=dict)
    programs: Mapping[str, fx.Graph] = field(default_factory=dict)
    pretrained_cfg: Any = None
    config: Any = None
    classes: Mapping[str, Template] = field(default_factory=dict)
    paths: Ways | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Graphs cannot be pickled, and are copied as they are pickled."""
        entries = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        entries = {k: dict(v) if isinstance(v, Mapping) else v for k, v in entries.items()}
        entries["programs"] = {k: packed(g) for k, g in self.programs.items()}
        return _made, (entries,)


def _made(entries: dict[str, Any]) -> About:
    programs = {k: unpacked(g) for k, g in entries.pop("programs").items()}
    return About(**entries, programs=programs)


def about(root: nn.Module) -> About:
    """What a captured model's root knows.

    Raises:
        KeyError: for a module that is none.
    """
    found: About = root.__dict__[_KEY]
    return found


def is_root(module: nn.Module) -> bool:
    """Whether it is the root of a captured model."""
    return _KEY in module.__dict__


def write(root: nn.Module, known: About) -> None:
    """Makes a module the root of a captured model."""
    root.__dict__[_KEY] = known


def tell(root: nn.Module, **changes: Any) -> None:
    """Has a root know something else."""
    write(root, dataclasses.replace(about(root), **changes))
