"""Modules that sites of a clause share: tied parameters, owned above all of the sites."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import fx, nn

from ..anatomy.sites import Place
from ..editing import wiring
from ..editing.editor import relative
from ..editing.value import Value

if TYPE_CHECKING:
    from .base import BoundSite


def tied(
    site: BoundSite, name: str, make: Callable[[], nn.Module], results: Sequence[str]
) -> tuple[Value, ...]:
    """What a module without inputs yields, made once for all sites of a clause.

    Args:
        site: one of them.
        name: of the module.
        make: makes it.
        results: names of what it yields.
    """
    known, keys = site.context.shared, [f"{name} {result}" for result in results]
    if keys[0] not in known:
        owner = wiring.common(site.editor, site.context.scope)
        first, child = _first_call(site, owner), f"{site._stem}_{name}"
        made = site.put(make(), owner, (), results, owner=owner, name=child)
        _name_apart(site)
        call = made[0] if made[0].op == "call_module" else made[0].args[0]
        for node in dict.fromkeys((call, *made)):
            assert isinstance(node, fx.Node)
            first.prepend(node)
        known.update(zip(keys, (Value(Place(owner, n.name)) for n in made), strict=True))
    return tuple(known[key] for key in keys)


def _name_apart(site: BoundSite) -> None:
    """Names the module that was put in last by itself, if its owner has one of the pass already."""
    *others, put = site.editor.insertions
    if any(i.pass_name == put.pass_name and i.owners == put.owners for i in others):
        put.owners = (put.path,)


def _first_call(site: BoundSite, owner: str) -> fx.Node:
    """The call in the graph of `owner` that leads to the first site of the clause."""
    below = site.context.scope[0]
    for path in wiring.callers(site.editor, site.context.scope[0]):
        if path == owner:
            break
        below = path
    graph = site.editor.graph(owner)
    if below == owner:
        nodes: list[fx.Node] = list(graph.nodes)
        return next(n for n in nodes if n.op not in ("placeholder", "get_attr"))
    return wiring.calls_of(graph, relative(below, owner))[0]
