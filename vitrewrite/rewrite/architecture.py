"""What a search found, written as a spec that makes the same model without a search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..language.expressions import Literal
from ..language.model import Clause, Spec
from ..language.selectors import Option
from ..language.settings import OF_A_SEARCH
from ..language.values import PerSite, Value
from .choosing import FoundOptions

if TYPE_CHECKING:
    from .engine import Rewrite


def architecture(result: Rewrite) -> Spec:
    """The spec with the options stated that were found; itself where nothing was."""
    spec = result.spec
    if not result.found:
        return spec
    sites = {step.clause.number: step.sites for step in result.steps}
    padded = (*spec.defaults, *({},) * (len(spec.clauses) - len(spec.defaults)))
    pairs = [
        _stated(clause, padded[number], sites.get(number, ()), result.found)
        for number, clause in enumerate(spec.clauses)
    ]
    settings = tuple(each for each in spec.tune.settings if each.name not in OF_A_SEARCH)
    return replace(
        spec,
        clauses=tuple(clause for clause, _ in pairs),
        defaults=tuple(defaults for _, defaults in pairs),
        tune=replace(spec.tune, settings=settings),
    )


def _stated(
    clause: Clause,
    defaults: Mapping[str, Value],
    roles: Sequence[str],
    known: Mapping[str, FoundOptions],
) -> tuple[Clause, Mapping[str, Value]]:
    """A clause with what was found at its sites, and the defaults of what it still leaves out."""
    found = known.get(clause.use.name) if clause.use else None
    if clause.use is None or found is None or not roles:
        return clause, defaults
    span, own = clause.use.span, clause.use.values
    names = dict.fromkeys(name for role in roles for name in found.at(role))
    made = [
        Option(name, Literal(_values(name, own, defaults, roles, found), span), span)
        for name in names
    ]
    kept = tuple(option for option in clause.use.options if option.name not in names)
    use = replace(clause.use, options=(*kept, *made))
    return replace(clause, use=use), {k: v for k, v in defaults.items() if k not in names}


def _values(
    name: str,
    own: Mapping[str, Any],
    defaults: Mapping[str, Any],
    roles: Sequence[str],
    found: FoundOptions,
) -> PerSite:
    """An option at each site of a clause, none where the clause puts nothing."""
    lists = [values for values in own.values() if isinstance(values, PerSite)]
    count = max(map(len, lists), default=len(roles))
    there = iter(roles)

    def values() -> Iterator[Value]:
        for place in range(count):
            if any(place < len(each) and each[place] is None for each in lists):
                yield None
                continue
            given = own.get(name, defaults.get(name))
            given = given[place] if isinstance(given, PerSite) else given
            yield found.at(next(there)).get(name, given)

    return PerSite(values())
