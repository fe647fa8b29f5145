"""What is found in training, and known from then on.

Which sites of `drop SITES by PASS` go, and with what options a clause stands at its sites.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..anatomy.sites import Block
from ..catalog.own_code import own_code
from ..language.model import Clause, Spec
from ..sites import BlockSite, Context
from .passes import Methods, method_of


@dataclass(frozen=True)
class BlockChoice:
    """Which sites of a clause go.

    Attributes:
        among: the roles of its sites, such as `blocks[11]`, in order.
        gone: those that go, or None while that is not known.
        scores: what they were chosen by, by role.
    """

    among: Sequence[str]
    gone: Sequence[str] | None = None
    scores: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The choice as data."""
        return asdict(self)


@dataclass(frozen=True)
class FoundOptions:
    """What a search found for the clauses of a pass.

    Attributes:
        options: by role of a site those that hold there, in place of the clause's own.
    """

    options: Mapping[str, Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """What was found as data."""
        return {"options": {role: dict(found) for role, found in self.options.items()}}

    def at(self, role: str) -> dict[str, Any]:
        """The options at a site, as the language has them: lists are tuples."""
        found = self.options.get(role, {})
        return {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}


def found_before(spec: Spec, known: Mapping[str, Any] | None) -> dict[str, FoundOptions]:
    """What searches found for the passes of a spec, out of what is known as data."""
    names = {clause.use.name for clause in spec.clauses if clause.use is not None}
    stored = {name: (known or {}).get(name) for name in sorted(names)}
    return {
        name: FoundOptions(data["options"])
        for name, data in stored.items()
        if isinstance(data, Mapping) and isinstance(data.get("options"), Mapping)
    }


@dataclass(frozen=True)
class Chooser:
    """What is known of the `drop ... by` clauses of a spec.

    Attributes:
        known: choices that were made before, as data, by pass.
        choices: gets that of each pass.
        methods: gets the pass of each clause.
    """

    known: Mapping[str, Any]
    choices: dict[str, BlockChoice]
    methods: Methods

    def sites(self, clause: Clause, sites: Sequence[Block], context: Context) -> list[Block]:
        """Those that go: none while nothing was chosen.

        Raises:
            RewriteError: VR401 for two clauses of one pass, VR410 and what else the pass says of a
                site that it is not made for.
        """
        if clause.use is None or not sites:
            return list(sites)
        name = clause.use.name
        if name in self.choices:
            raise context.clause.error(
                "VR401", f"two clauses drop blocks by {name}", suggestion="name all sites in one"
            )
        roles = tuple(site.role for site in sites)
        self._ask(clause, sites, replace(context, roles=roles))
        stored = self.known.get(name, {})
        choice = BlockChoice(roles, stored.get("gone"), stored.get("scores", {}))
        if choice.gone is None:
            BlockSite(context, sites[0]).warn(
                "nothing is taken out yet: 'vitrewrite tune' finds what can be"
            )
        self.choices[name] = choice
        return [site for site in sites if site.role in (choice.gone or ())]

    def _ask(self, clause: Clause, sites: Sequence[Block], context: Context) -> None:
        """Whether the pass is made for the sites."""
        method = self.methods[context.clause.number] = method_of(clause)
        for site in sites:
            doing = f"rewrite() at '{site.role}'"
            with own_code(type(method), context.clause.pass_name, doing, clause.span):
                method.rewrite(BlockSite(context, site))
