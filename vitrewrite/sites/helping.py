"""Modules without state that belong to no pass, with several results or owners of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import fx, nn

if TYPE_CHECKING:
    from .base import BoundSite


def helped(
    site: BoundSite,
    module: nn.Module,
    call: tuple[str, str, str],
    args: Sequence[fx.Node | None],
    hints: Sequence[str],
) -> tuple[fx.Node, ...]:
    """Calls a module as long as something reads what it yields; see `BoundSite.help`.

    Args:
        site: for which.
        module: the module.
        call: the unit that calls it, the module that it becomes a child of, its name.
        args: nodes of the unit's graph, None for what is not there.
        hints: variable names of the results.
    """
    unit, owner, name = call
    target, path = site.editor.adopt(unit, owner, name, module, site.like)
    site.editor.helpers.append(path)
    return site.editor.call(unit, target, args, origin=site.clause.origin, hints=tuple(hints))
