"""Selectors on a model: from `blocks[*].attn.{q, v}` to sites."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from ..anatomy.decoder import DecoderLayer
from ..anatomy.layers import layers_of
from ..anatomy.sites import Anatomy, Attention, Block, ChannelLayer, Linear
from ..errors import MatchError, Span
from ..language.selectors import (
    Call,
    Difference,
    Every,
    EveryBase,
    Intersection,
    ModuleGlob,
    Path,
    PathStep,
    Selector,
    Union,
    Where,
)
from ..language.selectors import Optional as Maybe
from ..text import did_you_mean, listing
from ..tracing import walk
from .kinds import KINDS, attributes, children, is_any, parts
from .starts import starts
from .within import Named, Site, SiteGroup

_PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "bias": ("bias", "q_bias", "v_bias", "in_proj_bias"),
    "parameter": (),
}
"""Kinds of parameters by their own names; empty for all of them."""


def _path_of(site: Site) -> str:
    """The module or parameter that a site is."""
    if isinstance(site, Linear):
        return site.weight.rpartition(".")[0]
    return str(getattr(site, "path", ""))


class Selection:
    """Evaluates selectors on one model.

    Args:
        anatomy: what its places are.
        root: the captured tree, for modules and parameters by name.
    """

    measured: Callable[[Call], tuple[Site, ...]] | None = None

    def __init__(self, anatomy: Anatomy, root: nn.Module) -> None:
        self.anatomy, self.root = anatomy, root
        self.modules = dict(walk.named(root))
        self.layers = {s.path: s for s in (*anatomy.norms, *anatomy.convs)}
        self.parameters = dict(root.named_parameters(remove_duplicate=False))

    def measuring(self, measured: Callable[[Call], tuple[Site, ...]]) -> Selection:
        """The same on the same model, with selectors that measure."""
        other = copy.copy(self)
        other.measured = measured
        return other

    def sites(self, selector: Selector) -> tuple[Site, ...]:
        """The sites, in the order of the selector.

        Raises:
            MatchError: VR301 for a site that the model does not have, VR302 if nothing matches,
                VR303 if a site is named twice, VR304 for an index beyond the end.
        """
        if isinstance(selector, Maybe):
            try:
                return self.sites(selector.selector)
            except MatchError as error:
                if error.code in ("VR301", "VR302", "VR304"):
                    return ()
                raise
        found = self._evaluate(selector)
        if not found:
            raise MatchError(
                "VR302",
                f"'{selector}' matches nothing in {self.anatomy.model}",
                span=selector.span,
                **self._instead(selector),
            )
        return found

    def _instead(self, selector: Selector) -> dict[str, Any]:
        """Where sites of a kind are, for a selector that finds none; notes and a suggestion."""
        optional = "write 'optional' before it if that is fine"
        if not isinstance(selector, Every) or selector.kind not in KINDS:
            return {"suggestion": optional}
        kind, within = selector.kind, selector.within
        if kind == "entries":
            return {
                "notes": ["a model has no entries by itself: they are what a budget buys"],
                "suggestion": "write 'sensitive(budget=0.4M)' to choose some",
            }
        notes = []
        sites = [] if within is None else self.sites(within)
        if (
            len(sites) == 1
            and isinstance(sites[0], Named | ChannelLayer)
            and sites[0].path in self.modules
        ):
            notes.append(f"'{within}' is a {type(self.modules[sites[0].path]).__name__}")
        places = ("blocks", "pixel_decoder", "decoder", "head")
        found = [
            place
            for place in places
            for role, site in self.anatomy.roles()
            if isinstance(site, KINDS[kind].finds) and _top(role) == place
        ]
        word = "linear layer" if kind == "linear" else kind
        if not found:
            notes.append(f"{self.anatomy.model} has no {word}")
            return {"notes": notes, "suggestion": optional}
        named = list(dict.fromkeys(found))
        whole = kind in (named[0], named[0].removesuffix("s"))
        nearest = f"every {kind}" if whole else f"every {kind} in {named[0]}"
        return {
            "notes": [*notes, f"its {word}s are in: {listing(named)}"],
            "suggestion": f"write '{nearest}'",
        }

    def _evaluate(self, node: Selector) -> tuple[Site, ...]:
        if isinstance(node, Path):
            return self._path(node)
        if isinstance(node, Union):
            return self._union(node)
        if isinstance(node, (Difference, Intersection)):
            return self._set(node)
        if isinstance(node, Where):
            return tuple(s for s in self._evaluate(node.selector) if self._where(node, s))
        if isinstance(node, Every):
            return self._every(node)
        if isinstance(node, EveryBase):
            return tuple(s for base in self.anatomy.bases for s in self._path(node.at(base)))
        if isinstance(node, ModuleGlob):
            return self._glob(node)
        if isinstance(node, Call):
            if self.measured is None:
                raise MatchError("VR306", f"'{node.name}' makes no sense here", span=node.span)
            return self.measured(node)
        return self.sites(node)

    # -- sets -----------------------------------------------------------------------------------

    def _union(self, node: Union) -> tuple[Site, ...]:
        found: dict[str, Site] = {}
        for part in node.parts:
            for site in self.sites(part):
                if site.role in found:
                    raise MatchError(
                        "VR303",
                        f"'{site.role}' is selected twice",
                        span=part.span,
                        suggestion=self._without(node, part),
                    )
                found[site.role] = site
        return tuple(found.values())

    def _without(self, node: Union, repeated: Selector) -> str:
        """A union without what a part of it repeats; nothing that would fail itself."""
        before = node.parts[: node.parts.index(repeated)]
        kept = Union(before, node.span) if len(before) > 1 else before[0]
        known = {s.role for s in self.sites(kept)}
        if all(s.role in known for s in self.sites(repeated)):
            return f"leave out '{repeated}'"
        whole = Union((*before, Difference(repeated, (kept,), node.span)), node.span)
        return f"write '{whole}'"

    def _set(self, node: Difference | Intersection) -> tuple[Site, ...]:
        first, rest = (
            (node.start, node.removed)
            if isinstance(node, Difference)
            else (node.parts[0], node.parts[1:])
        )
        sites = self.sites(first)
        for part in rest:
            roles = {s.role for s in self.sites(part)}
            keep = isinstance(node, Intersection)
            sites = tuple(s for s in sites if (s.role in roles) == keep)
        return sites

    def _where(self, node: Where, site: Site) -> bool:
        facts = attributes(site)
        try:
            return node.condition.holds(facts)
        except KeyError as error:
            name = str(error.args[0])
            raise MatchError(
                "VR305",
                f"'{site.role}' has no attribute '{name}'",
                span=node.condition.span,
                notes=[f"it has: {listing(facts)}"],
                suggestion=did_you_mean(name, facts),
            ) from None

    def _every(self, node: Every) -> tuple[Site, ...]:
        kind = KINDS.get(node.kind)
        if node.kind in _PARAMETERS:
            return self._every_parameter(node)
        if kind is None:
            raise MatchError(
                "VR301",
                f"no kind of site '{node.kind}'",
                span=node.span,
                notes=[f"kinds: {listing([*KINDS, *_PARAMETERS])}"],
                suggestion=did_you_mean(node.kind, [*KINDS, *_PARAMETERS]),
            )
        inside: list[Any] = list(kind.sites(self.anatomy))
        if node.within is not None:
            inside = [part for site in self.sites(node.within) for part in self._parts(site)]
        found: dict[str, Site] = {s.role: s for s in inside if is_any(s, (node.kind,))}
        return tuple(found.values())

    def _parts(self, site: Site) -> list[Site]:
        """A site and everything in it; in a module by name, the layers below it."""
        if not isinstance(site, Named):
            return parts(site)
        below = f"{site.path}."
        linears = (s for s in self.anatomy.linears if s.weight.startswith(below))
        layers = (*self.anatomy.norms, *self.anatomy.convs)
        return [site, *linears, *(s for s in layers if s.path.startswith(below))]

    def _every_parameter(self, node: Every) -> tuple[Site, ...]:
        """Parameters of one kind: all of the model, or those in the sites of `within`."""
        wanted = _PARAMETERS[node.kind]
        inside = set(self.parameters)
        if node.within is not None:
            sites = [part for site in self.sites(node.within) for part in parts(site)]
            paths = [p for site in sites if (p := _path_of(site))]
            inside = {n for n in inside if any(n == p or n.startswith(f"{p}.") for p in paths)}
        return tuple(
            Named(name, name, "parameter")
            for name in self.parameters
            if name in inside and (not wanted or name.rpartition(".")[2] in wanted)
        )

    def _glob(self, node: ModuleGlob) -> tuple[Site, ...]:
        linears = {s.weight.removesuffix(".weight"): s for s in self.anatomy.linears if not s.rows}
        whole = {a.qkv.path: a.qkv for a in self._attentions() if a.qkv is not None}
        names = [n for n in self.modules if n and fnmatchcase(n, node.glob)]
        if not names:
            named = [n for n in self.parameters if fnmatchcase(n, node.glob)]
            return tuple(Named(name, name, "parameter") for name in named)
        found = [whole.get(n) or linears.get(n) or self._module(n, n) for n in names]
        return tuple(found)

    def _attentions(self) -> Iterable[Attention]:
        return (b.attn for b in self.anatomy.blocks if b.attn is not None)

    # -- paths ----------------------------------------------------------------------------------

    def _path(self, node: Path) -> tuple[Site, ...]:
        current: list[Any] = [SiteGroup("", (), self._root())]
        for step in node.steps:
            current = self._step(current, step, node)
        return tuple(s for group in current for s in _flat(group))

    def _root(self) -> dict[str, Any]:
        if self.anatomy.bases:
            return {name: Named(name, name, "module") for name in self.anatomy.bases}
        return starts(self.anatomy, self._module)

    def _step(self, current: list[Any], step: PathStep, node: Path) -> list[Any]:
        found: list[Any] = []
        missing: list[tuple[Any, str]] = []
        owners = [item for owner in current for item in _spread(owner)]
        for owner in owners:
            known = self._children(owner)
            for name in step.names:
                child = known.get(name)
                if child is None:
                    child = self._by_name(owner, name)
                if child is None:
                    missing.append((owner, name))
                else:
                    found += self._indexed(child, step, node)
        named = {name for _, name in missing}
        if missing and (len(owners) == 1 or len(missing) >= len(owners) * len(named)):
            raise self._absent(*missing[0], node, step.span)
        return found

    def _indexed(self, child: Any, step: PathStep, node: Path) -> list[Any]:
        if step.index is None:
            return [child]
        if not isinstance(child, SiteGroup):
            raise MatchError(
                "VR304", f"'{child.role}' is one site and takes no index", span=step.index.span
            )
        count = len(child.numbered)
        try:
            chosen = step.index.positions(count)
        except IndexError as error:
            raise MatchError(
                "VR304",
                f"index {error.args[0]} is out of range: {self.anatomy.model} has {count} "
                f"{child.role}",
                span=step.index.span,
                notes=[f"valid: 0..{count - 1}, or -{count}..-1 from the end"],
            ) from None
        named = [i for i in chosen if i in child.gone]
        if named and not step.index.everything:
            block, clause = child.gone[named[0]]
            more = f" and {len(named) - 1} more" if len(named) > 1 else ""
            raise MatchError(
                "VR401",
                f"'{block.role}'{more} is taken out by another clause",
                span=step.index.span,
                notes=[f"the other clause: {clause}"],
                suggestion="positions are those of the model as it was; [*] is all that is left",
            )
        return [child.numbered[i] for i in chosen if i not in child.gone]

    def _children(self, owner: Any) -> dict[str, Any]:
        if isinstance(owner, SiteGroup):
            return dict(owner.children or {})
        if isinstance(owner, Named) and owner.path in self.anatomy.bases:
            return starts(self.anatomy.bases[owner.path], self._module)
        return children(owner)

    def _module(self, role: str, path: str) -> Site:
        """The module at a path: a site where it is a norm or a convolution."""
        layer = self.layers.get(path)
        return Named(role, path, "module") if layer is None else replace(layer, role=role)

    def _by_name(self, owner: Any, name: str) -> Site | None:
        """A module or parameter below a site, by the model's own name for it."""
        if isinstance(owner, SiteGroup) and not owner.role:
            path = name
        elif isinstance(owner, Named) and owner.kind == "module":
            path = f"{owner.path}.{name}"
        elif isinstance(owner, (Block, DecoderLayer)) and owner.unit:
            path = f"{owner.unit}.{name}"
        else:
            layers = layers_of(self.anatomy)
            return next((s for s in layers if s.role == f"{owner.role}.{name}"), None)
        role = f"{owner.role}.{name}" if owner.role else name
        if path in self.parameters:
            return Named(role, path, "parameter")
        return self._module(role, path) if path in self.modules else None

    def _absent(self, owner: Any, name: str, node: Path, span: Span) -> MatchError:
        known = sorted(self._children(owner))
        if isinstance(owner, SiteGroup) and not owner.role:
            known += [n for n, _ in self.root.named_children() if n not in known]
        fused = [
            f"the attention in {path} is one fused call: its parts are no sites"
            for path in self.anatomy.fused[: name == "decoder"]
        ]
        where = f"'{owner.role}' of {self.anatomy.model}" if owner.role else self.anatomy.model
        return MatchError(
            "VR301",
            f"{where} has no site '{name}'",
            span=span,
            notes=[*([f"it has: {listing(known)}"] if known else []), *fused],
            suggestion=did_you_mean(name, known),
        )


def _top(role: str) -> str:
    """The first step of a role, without its index."""
    return role.partition(".")[0].partition("[")[0]


def _spread(owner: Any) -> list[Any]:
    return list(owner.items) if isinstance(owner, SiteGroup) and owner.items else [owner]


def _flat(site: Any) -> list[Any]:
    if isinstance(site, SiteGroup):
        nested = site.items or tuple((site.children or {}).values())
        return [s for item in nested for s in _flat(item)]
    return [site]
