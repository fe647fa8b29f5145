"""What to write instead, where a pass was sent to a kind of site that it does not attach to.

Every selector that is named here was tried: it is parsed, selects sites of the right kind, and the
clause is carried out there on a copy of the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..catalog.declare import Pass
from ..editing.measure import BrokenError, Propagation
from ..errors import VitrewriteError
from ..language import parse_spec
from ..language.model import Clause
from ..language.selectors import Path, Selector
from ..selection.kinds import KINDS, parts, word_for
from ..selection.select import Selection
from ..selection.within import Site
from ..text import a_or_an
from ..tracing import walk
from ..tracing.template import Template
from ..tracing.unit import Unit, duplicate, on_meta

_NAMES = ("attn", "self_attn", "cross_attn", "mlp", "ffn")


@dataclass(frozen=True)
class Advice:
    """The notes and the help of an error."""

    notes: tuple[str, ...] = ()
    suggestion: str | None = None


class Adviser:
    """Looks for other sites of a clause.

    Args:
        clause: what cannot be carried out as it is.
        method: its pass.
        sites: what its selector selects.
        result: the rewrite so far; it stays as it is.
    """

    def __init__(self, clause: Clause, method: Pass, sites: tuple[Site, ...], result: Any) -> None:
        self.clause, self.method, self.sites, self.result = clause, method, sites, result
        self.kinds = tuple(KINDS[kind].finds for kind in method.attaches)

    def advice(self, wrong: Site) -> Advice:
        """What to say about a site of the wrong kind."""
        if self.method.attaches == ("entries",):
            return Advice(("entries are what sensitive(budget=...) chooses by measurements",))
        wanted = self.method.attaches[0]
        if wanted == "head" and not self.result.anatomy.head:
            return Advice(
                (f"{self.result.anatomy.model} has no layer that makes classes",),
                "build it with some, such as num_classes=10, and name its head then",
            )
        for selector, found in (*self._inside(), *self._around(wrong)):
            if self._works(selector):
                return Advice(suggestion=f"'{selector}' selects {found}")
        if sum(isinstance(part, self.kinds) for part in parts(wrong)) > 1:
            name = self.clause.use.name if self.clause.use else "it"
            whole = f"something else than at the {word_for(wrong)} as a whole"
            return Advice((f"{name} at every {wanted} in it is {whole}",))
        if example := next(filter(self._works, self._examples()), None):
            return Advice(suggestion=f"'{example}' selects {a_or_an(wanted)}")
        if not any(self._examples()):
            return Advice((f"{self.result.anatomy.model} has no {wanted}",))
        return Advice()

    def _inside(self) -> Iterator[tuple[str, str]]:
        """Sites in those that were selected: the same method only if that makes no difference.

        An update of weights is the update of all matrices in a site. What computes something of its
        own is meant once for each site.
        """
        is_update = {"same_output_at_init", "lowers_exactly"} <= set(self.method.claims)
        for kind in self.method.attaches:
            selector = f"every {kind} in {_operand(self.clause.sites)}"
            found = self._select(selector)
            if found and (is_update or len(found) == len(self.sites)):
                yield selector, "those in it"
        if isinstance(self.clause.sites, Path):
            below = [f"{self.clause.sites}.{name}" for name in _NAMES]
            works = [selector for selector in below if self._works(selector)]
            if len(works) == 1:  # else it is not clear which is meant
                yield works[0], f"the {self.method.attaches[0]} in it"

    def _around(self, wrong: Site) -> Iterator[tuple[str, str]]:
        """Sites that hold those that were selected, or lie beside them in one that does."""
        path = self.clause.sites
        if isinstance(path, Path):
            yield f"{path}_branch", "the branch that it is in"
        else:
            path = _parsed(re.sub(r"\[\d+\]", "[*]", wrong.role))
        steps = path.steps if isinstance(path, Path) else ()
        kind = self.method.attaches[0]
        for count in range(len(steps) - 1, 0, -1):
            holder = ".".join(map(str, steps[:count]))
            yield holder, f"the {kind} that holds it"
            for name in _NAMES:
                yield f"{holder}.{name}", f"the {kind} beside it"

    def _examples(self) -> Iterator[str]:
        """A few sites of the right kind, wherever they are."""
        sites = dict(self.result.anatomy.roles())
        fitting = [role for role, site in sites.items() if isinstance(site, self.kinds)]
        yield from filter(self._select, ("decoder", *fitting[:2], *fitting[-1:]))

    def _select(self, text: str) -> tuple[Site, ...]:
        """The sites that a selector selects, all of them of the right kind, or none."""
        selector = _parsed(text)
        found: tuple[Site, ...] = ()
        if selector is not None:
            with suppress(VitrewriteError):
                found = Selection(self.result.anatomy, self.result.root).sites(selector)
        return found if all(isinstance(site, self.kinds) for site in found) else ()

    def _works(self, text: str) -> bool:
        """Whether the clause can be carried out there."""
        from .engine import rewrite  # it asks for advice

        if not self._select(text):
            return False
        clause = replace(self.clause, sites=_parsed(text))
        spec = replace(self.result.spec, clauses=(clause,), requires=())
        try:
            with torch.device("meta"):
                tried = rewrite(spec, copied(self.result.root))
                Propagation(tried.root, tried.example)
        except (VitrewriteError, BrokenError):
            return False
        return True


def copied(root: nn.Module) -> nn.Module:
    """A tree like this one without weights, which can be rewritten on trial."""
    copy = duplicate(
        on_meta(root),
        lambda p: nn.Parameter(p.detach(), requires_grad=p.requires_grad),
        lambda b: b.clone(),
    )
    clones: dict[int, Template] = {}
    for unit in walk.modules(copy):
        if isinstance(unit, Unit) and (template := unit.template) is not None:
            clones.setdefault(id(template), template.clone())
            unit.__dict__["template"] = clones[id(template)]
    return copy


def _parsed(text: str) -> Selector | None:
    """A selector of the language, or None if the text is none."""
    with suppress(VitrewriteError):
        return parse_spec(f"train {text}\n").clauses[0].sites
    return None


def _operand(selector: Selector | None) -> str:
    """A selector as `in` takes it."""
    text = str(selector)
    return text if isinstance(selector, Path) else f"({text})"
