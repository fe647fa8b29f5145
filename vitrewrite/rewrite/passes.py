"""The pass objects that a clause of a spec names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .. import catalog
from ..catalog.declare import Pass
from ..catalog.own_code import file_of, own_code
from ..editing.clause import ClauseRef
from ..editing.editor import Insertion
from ..errors import SpecError
from ..language.model import Clause
from ..language.values import PerSite, Value, show

if TYPE_CHECKING:
    from .choosing import FoundOptions


def method_of(clause: Clause) -> Pass:
    """The pass of a clause with its options; of those given by site, the first.

    Raises:
        SpecError: VR240 for a class that carries nothing out, VR420 for one that cannot be made.
    """
    assert clause.use is not None
    known = (v for v in clause.use.values.values() if isinstance(v, PerSite))
    there = [i for i, items in enumerate(zip(*known, strict=False)) if None not in items]
    lists = {n: v for n, v in clause.use.values.items() if isinstance(v, PerSite)}
    return _method(clause, {n: v[there[0]] for n, v in lists.items()} if there else {})


def _method(clause: Clause, here: Mapping[str, Value]) -> Pass:
    assert clause.use is not None
    plain = {n: v for n, v in clause.use.values.items() if not isinstance(v, PerSite)}
    values = {**plain, **here}
    found = catalog.load(clause.use.key)
    if found.rewrite is Pass.rewrite:
        message = f"pass '{clause.use.name}' has no rewrite(), which carries it out at a site"
        raise SpecError("VR240", message, span=clause.span, notes=[f"in {file_of(found)}"])
    with own_code(found, clause.use.name, "its constructor", clause.span):
        return found(**values)


def methods_by_site(
    clause: Clause, described: ClauseRef, roles: Sequence[str], found: FoundOptions | None = None
) -> tuple[Pass | None, ...]:
    """The pass at each site, None where an option says that it is not there; equal ones are one.

    Args:
        clause: what names the pass.
        described: it, for messages.
        roles: of the sites.
        found: what a search found for the pass.

    Raises:
        RewriteError: VR403 if an option has another number of values than there are sites.
    """
    assert clause.use is not None
    lists = {n: v for n, v in clause.use.values.items() if isinstance(v, PerSite)}
    known = catalog.signature(clause.use.key).options if lists else {}
    for name, values in lists.items():
        rest = known[name].rest
        if rest is not None:
            values = lists[name] = PerSite((*values, *(rest,) * (len(roles) - len(values))))
        if len(values) != len(roles):
            more = ", ..." if len(roles) > 8 else ""
            raise described.error(
                "VR403",
                f"{clause.use.name}.{name} has {len(values)} values, and there are "
                f"{len(roles)} sites",
                name,
                notes=[f"sites: {', '.join(roles[:8])}{more}"],
                suggestion="one value holds for all of them",
            )
    made: dict[str, Pass] = {}
    methods: list[Pass | None] = []
    for place, role in enumerate(roles):
        here = {name: values[place] for name, values in lists.items()}
        if None in here.values():
            methods.append(None)
            continue
        here |= found.at(role) if found else {}
        key = show(tuple(value for pair in here.items() for value in pair))
        if key not in made:
            made[key] = _method(clause, here)
        methods.append(made[key])
    return tuple(methods)


class Methods(dict[int, Pass]):
    """The pass of each clause that has one, by the clause's position.

    Attributes:
        at: by module path, that of what a pass put in, where its options differ from site to site.
    """

    def __init__(self) -> None:
        super().__init__()
        self.at: dict[str, Pass] = {}

    def of(self, insertion: Insertion) -> Pass:
        """The pass that put something in, with its options there."""
        return self.at.get(insertion.path) or self[insertion.clause]
