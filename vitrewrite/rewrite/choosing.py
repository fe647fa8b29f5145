"""`drop SITES by PASS`: which of the sites go is found in training, and known from then on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..anatomy.sites import Block
from ..catalog.own_code import own_code
from ..language.model import Clause
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
