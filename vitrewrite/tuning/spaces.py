"""What a search over structure decides about, and what that costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from operator import mul
from typing import Any, TypeAlias, cast

import torch
from torch import nn

from ..catalog.declare import Pass
from ..catalog.own_code import own_code
from ..editing.editor import Insertion
from ..errors import TuneError
from ..language.conventions import CONVENTIONS
from ..layers.gating import StructureGates
from ..rewrite.choosing import FoundOptions
from ..rewrite.compilation import Compilation
from ..rewrite.deciding import recompiled
from ..rewrite.patches import beside_patches
from ..rewrite.rewritten import Rewritten
from ..text import giga

Pattern: TypeAlias = tuple[bool, ...]
"""Which gates of a module are open."""
_FEW = 8
"""How many gates may hang together: their states are tried out."""


@dataclass(frozen=True)
class SearchedPart:
    """A module that a search decides about.

    Attributes:
        insertion: it, where its pass put it.
        method: the pass, with its options there.
        prices: MACs behind each entry of its `priced()`.
        states: of gates that hang together, patterns of open ones that make a difference, the
            cheapest first; none of gates that each stand for a part by themselves.
        costs: of these states, and `alike` all patterns that amount to each.
    """

    insertion: Insertion
    method: Pass
    prices: tuple[float, ...]
    states: tuple[Pattern, ...] = ()
    costs: tuple[float, ...] = ()
    alike: tuple[tuple[Pattern, ...], ...] = ()

    @property
    def role(self) -> str:
        """Where it is."""
        return self.insertion.site.role

    @property
    def count(self) -> int:
        """How many gates it has."""
        return len(self.states[0]) if self.states else len(self.prices)

    @property
    def ends(self) -> tuple[list[bool], list[bool]]:
        """What is open where it is cheapest and where it is dearest."""
        if self.states:
            return [*self.states[0]], [*self.states[-1]]
        least, (some, other) = self.method.least, (True, False)
        order = sorted(range(self.count), key=lambda i: self.prices[i])
        kept = {*order[:least]}
        return [some if i in kept else other for i in range(self.count)], [True] * self.count

    def cost(self, opened: Sequence[bool]) -> float:
        """What is open costs so much, of patterns in `states` or of any."""
        if self.states:
            return self.costs[self.states.index(tuple(opened))]
        return sum(price for price, there in zip(self.prices, opened, strict=True) if there)

    def gates(self, root: nn.Module) -> list[StructureGates]:
        """Those in a tree."""
        module = root.get_submodule(self.insertion.path)
        return [each for each in module.modules() if isinstance(each, StructureGates)]

    def logits(self, root: nn.Module) -> torch.Tensor:
        """Its logits in a tree."""
        module: Any = root.get_submodule(self.insertion.path)
        return cast("torch.Tensor", module.logits)


@dataclass(frozen=True)
class Space:
    """All that a search decides about in a model.

    Attributes:
        parts: the modules, in the order of the clauses.
        constant: what the model costs besides.
    """

    rewritten: Rewritten
    parts: tuple[SearchedPart, ...]
    constant: float

    @property
    def ends(self) -> tuple[float, float]:
        """Costs of the smallest and the largest model."""
        low, high = ([part.cost(part.ends[i]) for part in self.parts] for i in (0, 1))
        return self.constant + sum(low), self.constant + sum(high)

    def cost(self, root: nn.Module) -> torch.Tensor:
        """MACs of an image with what is open in a tree, with a gradient by logits."""
        total: Any = self.constant
        for part in self.parts:
            module: Any = root.get_submodule(part.insertion.path)
            priced = module.priced().double()
            total = total + priced @ priced.new_tensor(part.prices)
        return cast("torch.Tensor", total)

    def at(self, opened: Sequence[Sequence[bool]]) -> float:
        """MACs of an image with what is open, part by part."""
        pairs = zip(self.parts, opened, strict=True)
        return self.constant + sum(part.cost(each) for part, each in pairs)

    def by_pass(self, opened: Sequence[Sequence[bool]]) -> dict[str, dict[str, int]]:
        """MACs of an image of what each pass decides about, and of all else, at most and now."""
        counts = {"rest": [self.constant, self.constant]}
        for part, each in zip(self.parts, opened, strict=True):
            known = counts.setdefault(part.insertion.pass_name, [0.0, 0.0])
            known[0] += part.cost(part.ends[1])
            known[1] += part.cost(each)
        return {k: {"before": round(a), "after": round(b)} for k, (a, b) in counts.items()}

    def found(self, opened: Sequence[Sequence[bool]]) -> dict[str, FoundOptions]:
        """The options of the clauses that state what is open, by pass."""
        return _found(self.rewritten, self.parts, opened)


def space_of(rewritten: Rewritten, *, patches: bool = False) -> Space | None:
    """What there is to search in a model; None if nothing.

    Args:
        rewritten: the model.
        patches: whether MACs are counted as by SPViT's table.

    Raises:
        TuneError: VR873 if a model built of what was found costs something else than prices say.
        RewriteError: VR420 for a pass that fails.
    """
    parts = _parts(rewritten, patches=False)
    if not parts:
        return None
    smallest, dense = (_compiled(rewritten, parts, end) for end in (0, 1))
    known = Space(rewritten, parts, _besides(parts, dense.measures.macs_lowered))
    least = smallest.measures.macs_lowered
    if known.ends[0] != least:
        names = " and ".join(dict.fromkeys(part.insertion.pass_name for part in parts))
        raise TuneError(
            "VR873",
            f"prices of {names} make the smallest model {giga(round(known.ends[0]))} "
            f"MACs, and it has {giga(least)}",
            notes=[f"they differ by {least - known.ends[0]:,.0f}"],
            suggestion="prices() are the MACs that lowering spares",
        )
    if not patches:
        return known
    parts = _parts(rewritten, patches=True)
    return Space(rewritten, parts, _besides(parts, _by_patches(dense)))


def _besides(parts: Sequence[SearchedPart], dense: int) -> float:
    """What a model costs in which nothing is there that is decided about."""
    return dense - sum(part.cost(part.ends[1]) for part in parts)


def _by_patches(made: Compilation) -> int:
    """MACs of a lowered model by the table of SPViT's paper."""
    run = made.measures.run_lowered
    costs = run.costs + beside_patches(made.anatomy, made.measures.editor_lowered, run)
    return round(costs.weighed(CONVENTIONS["patches"].weights))


def _parts(rewritten: Rewritten, *, patches: bool) -> tuple[SearchedPart, ...]:
    """The modules whose passes say what their parts cost."""
    found = []
    for insertion in rewritten.result.editor.insertions:
        method = rewritten.result.methods.of(insertion)
        module: Any = rewritten.module.get_submodule(insertion.path)
        if type(method).prices is Pass.prices or not hasattr(module, "priced"):
            continue
        name, where = insertion.pass_name, f"at '{insertion.site.role}'"
        with own_code(type(method), name, f"prices() {where}", insertion.site.clause.span):
            prices = method.prices(insertion.site, module, patches_only=patches)
        with own_code(type(method), name, f"priced() {where}", insertion.site.clause.span):
            states = _states(module, name)
        costs = {values: sum(map(mul, prices, values)) for values in states}
        order = sorted(states, key=lambda values: costs[values])
        patterns = tuple(tuple(states[values]) for values in order)
        made = tuple(each[0] for each in patterns), tuple(costs[values] for values in order)
        found.append(SearchedPart(insertion, method, tuple(map(float, prices)), *made, patterns))
    return tuple(found)


def _states(module: Any, name: str) -> dict[tuple[float, ...], list[Pattern]]:
    """By what is priced the patterns of open gates, the plainest first.

    Nothing where each gate has a part by itself.
    """
    count = module.logits.numel()
    priced = _priced(module)
    probe = tuple(i % 2 == 0 for i in range(count))
    alone = [probe, tuple(not each for each in probe)]
    if count <= _FEW:
        alone = [*product((False, True), repeat=count)]
    if all(priced(each) == tuple(map(float, each)) for each in alone):
        return {}
    if count > _FEW:
        raise TuneError("VR873", f"{name} has {count} gates that hang together, and can have 8")
    states: dict[tuple[float, ...], list[Pattern]] = {}
    for pattern in alone:
        values = priced(pattern)
        plain = pattern == tuple(value > 0.5 for value in values)
        states.setdefault(values, []).insert(0 if plain else 1, pattern)
    return states


def _priced(module: Any) -> Callable[[Sequence[bool]], tuple[float, ...]]:
    """What `priced` says of a pattern of open gates; the module stays as it is."""

    @torch.no_grad()
    def ask(opened: Sequence[bool]) -> tuple[float, ...]:
        logits, known = module.logits, module.logits.detach().clone()
        try:
            logits.copy_(torch.tensor(opened).to(logits).view_as(logits) * 2 - 1)
            return tuple(module.priced().tolist())
        finally:
            logits.copy_(known)

    return ask


def _compiled(rewritten: Rewritten, parts: Sequence[SearchedPart], end: int) -> Compilation:
    """The smallest (0) or the largest (1) model, on meta."""
    return recompiled(rewritten, _found(rewritten, parts, [part.ends[end] for part in parts]))


def _found(
    rewritten: Rewritten, parts: Sequence[SearchedPart], opened: Sequence[Sequence[bool]]
) -> dict[str, FoundOptions]:
    options: dict[str, dict[str, Mapping[str, Any]]] = {}
    for part, each in zip(parts, opened, strict=True):
        insertion, method = part.insertion, part.method
        module = rewritten.module.get_submodule(insertion.path)
        where, span = f"found() at '{part.role}'", insertion.site.clause.span
        with own_code(type(method), insertion.pass_name, where, span):
            stated = method.found(module, each)
            options.setdefault(insertion.pass_name, {})[part.role] = dict(_plain(stated))
    return {name: FoundOptions(by_role) for name, by_role in options.items()}


def _plain(options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Options as JSON has them."""
    for name, value in options.items():
        yield name, [*value] if isinstance(value, (tuple, list)) else value
