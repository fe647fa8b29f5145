"""What passes claim, checked clause by clause.

A claim is checked where the pass makes it: of each module that a clause put in, not of the model as
a whole, where the error of one clause could hide behind another.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..rewrite.claims import EXACT
from ..rewrite.initial import draw
from ..rewrite.lowering import in_turn, lowered_tree
from ..signature import CLAIMS
from ..tracing.configuration import freeze
from ..tracing.leaves import changed_by
from ..tracing.unit import Unit, duplicate
from .check import Check
from .numeric import randomised, relative, sample

if TYPE_CHECKING:
    from ..rewrite.clause import Clause
    from ..rewrite.editor import Insertion
    from ..rewrite.rewritten import Rewritten

MEASURED = 1e-3
"""Largest error of what `errors` of a pass measures."""

Inputs = tuple[torch.Tensor, ...]


# -- the same output at initialisation ------------------------------------------------------------


@torch.no_grad()
def identities(rewritten: Rewritten, inputs: Inputs | None = None) -> Iterator[Check]:
    """Per clause that claims `same_output_at_init`: what its modules change, they leave as it is.

    All inserted modules are as they are drawn at first, whatever they are now, and one forward
    shows them all. A clause of which no module changes a value, because all make new ones, is
    compared with the model without that clause.

    Args:
        rewritten: the model, not a lowered one; it is not changed.
        inputs: what it is called with; random by default.
    """
    clauses = [] if rewritten.lowered else _claiming(rewritten, "same_output_at_init")
    if not clauses:
        return
    inputs = sample(rewritten) if inputs is None else inputs
    fresh = _fresh(rewritten)
    errors = _changes(fresh, inputs)
    for clause in clauses:
        name = f"{clause.origin}: same output at initialisation"
        own = [i for i in _insertions(fresh, clause, "same_output_at_init") if i.path in errors]
        if own:
            worst = max(own, key=lambda i: errors[i.path])
            error = errors[worst.path]
            yield Check(name, error == 0, error, "" if error == 0 else f"at '{worst.path}'")
        elif _insertions(fresh, clause, "same_output_at_init"):
            error = relative(_without(fresh, clause), fresh.module, inputs)
            yield Check(name, error == 0, error, "compared with the model without the clause")


def _claiming(rewritten: Rewritten, claim: str) -> list[Clause]:
    """The clauses whose passes claim something, in the order of the spec."""
    steps = (s for s in rewritten.result.steps if claim in s.claims)
    return [step.clause for step in steps]


def _insertions(rewritten: Rewritten, clause: Clause, claim: str) -> list[Insertion]:
    """What a clause put in at the sites where it makes a claim."""
    editor = rewritten.result.editor
    waived = editor.waived.get((clause.number, claim), {})
    own = (i for i in editor.insertions if i.clause == clause.number)
    return [i for i in own if i.site.role not in waived]


def _fresh(rewritten: Rewritten) -> Rewritten:
    """A copy before any training: what was put in is as it is drawn, the rest as in the base."""
    base = rewritten.base.state_dict()
    root = _copy(rewritten.module)
    for name in rewritten.result.base_trained & base.keys():
        root.get_parameter(name).copy_(base[name])
    result = replace(rewritten.result, root=root, editor=rewritten.result.editor.on(root))
    draw(result, rewritten.seed)
    return replace(rewritten, module=root, result=result)


def _copy(root: nn.Module) -> nn.Module:
    def own(parameter: nn.Parameter) -> nn.Parameter:
        return nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)

    return duplicate(root, own, lambda b: b.clone()).eval()


def _changes(rewritten: Rewritten, inputs: Inputs) -> dict[str, float]:
    """By path of an inserted module how far off its outputs are from what they are forms of.

    Only of modules that change values; infinite for one that never runs.
    """
    found: dict[str, float] = {}
    handles = []
    for insertion in rewritten.result.editor.insertions:
        if any(i is not None for i in changed_by(insertion.module)):
            found[insertion.path] = math.nan  # until it runs
            handles += _watched(insertion, found)
    try:
        rewritten.module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {path: math.inf if math.isnan(error) else error for path, error in found.items()}


def _watched(insertion: Insertion, found: dict[str, float]) -> list[Any]:
    given: list[Any] = []

    def before(_: nn.Module, args: Any) -> None:
        # Copies: a module may write into what it is given.
        given[:] = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]

    def after(module: nn.Module, _: Any, outputs: Any) -> None:
        results = outputs if isinstance(outputs, tuple) else (outputs,)
        pairs = zip(results, changed_by(module), strict=False)
        error = max(_difference(given[i], out) for out, i in pairs if i is not None)
        known = found[insertion.path]
        found[insertion.path] = error if math.isnan(known) else max(error, known)

    module = insertion.module
    return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


def _difference(before: torch.Tensor, after: torch.Tensor) -> float:
    """The largest difference; infinite for other shapes, dtypes or what is not finite."""
    if before.shape != after.shape or before.dtype != after.dtype:
        return math.inf
    if not before.numel() or torch.equal(before, after):
        return 0.0
    return _finite(float((before.double() - after.double()).abs().max()))


def _finite(error: float) -> float:
    return error if math.isfinite(error) else math.inf


def _without(rewritten: Rewritten, clause: Clause) -> nn.Module:
    """The model without one clause, all else as it is drawn."""
    from ..rewrite.engine import rewrite

    kept = (c for i, c in enumerate(rewritten.spec.clauses) if i != clause.number)
    spec = replace(rewritten.spec, clauses=tuple(kept))
    known = {k: a.to_json(entries=True) for k, a in rewritten.result.allocations.items()}
    result = rewrite(spec, _copy(rewritten.base), allocations=known)
    draw(result, rewritten.seed)
    return _interpreted(result.root).eval()


def _interpreted(root: nn.Module) -> nn.Module:
    """Makes units run their graphs instead of printed classes, which takes no printing."""
    for module in root.modules():
        if isinstance(module, Unit):
            module.__class__ = Unit
    return root


# -- exact lowering -------------------------------------------------------------------------------


@torch.no_grad()
def lowerings(
    rewritten: Rewritten, inputs: Inputs | None = None, allowed: float = EXACT
) -> Iterator[Check]:
    """Per clause that claims `lowers_exactly`: lowering changes its modules, and no output.

    What was put in is random, so that no branch is zero. Clauses are lowered one after the other,
    each compared with the model before; see `verification.lowered`.

    Args:
        rewritten: the model, not a lowered one; it is not changed.
        inputs: what it is called with; random by default.
        allowed: the largest error, over the largest output.
    """
    claiming = [] if rewritten.lowered else _claiming(rewritten, "lowers_exactly")
    if not claiming:
        return
    inputs = sample(rewritten) if inputs is None else inputs
    twin = randomised(rewritten)
    before = _interpreted(twin.module).eval()
    order = dict.fromkeys(i.clause for i in in_turn(twin.result.editor.insertions))
    done: list[int] = []
    for number in order:
        done.append(number)
        now = _interpreted(lowered_tree(twin, done)[0]).eval()
        for clause in (c for c in claiming if c.number == number):
            error = _finite(relative(before, now, inputs))
            left = _unchanged(twin, now, clause)
            name = f"{clause.origin}: lowers exactly"
            note = f"lowering leaves '{left[0]}' as it is" if left else ""
            yield Check(name, error <= allowed and not left, error, note)
        before = now


def _unchanged(rewritten: Rewritten, lowered: nn.Module, clause: Clause) -> list[str]:
    """Paths of modules of a clause that are in a lowered model as they were."""
    after = dict(lowered.named_modules())
    own = _insertions(rewritten, clause, "lowers_exactly")
    return [i.path for i in own if i.path in after and _same(i.module, after[i.path])]


def _same(before: nn.Module, after: nn.Module) -> bool:
    """Whether two modules compute the same in the same way."""
    if type(before) is not type(after) or _settings(before) != _settings(after):
        return False
    first, second = before.state_dict(), after.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(v, second[k]) for k, v in first.items()
    )


def _settings(module: nn.Module) -> Any:
    hidden = ("training", "template", "example", "classes")
    own = {k: v for k, v in vars(module).items() if not k.startswith("_") and k not in hidden}
    return freeze(own)


# -- what passes measure themselves ---------------------------------------------------------------


@torch.no_grad()
def properties(rewritten: Rewritten, inputs: Inputs | None = None) -> Iterator[Check]:
    """Per clause what `errors` of its pass measures of each call of its modules, in one forward.

    A claim that it is to measure and does not is one that fails.
    """
    inputs = sample(rewritten) if inputs is None else inputs
    found: defaultdict[int, dict[str, float]] = defaultdict(dict)
    handles = [_measured(rewritten, i, found) for i in rewritten.result.editor.insertions]
    try:
        rewritten.module.eval()(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    left = {i.clause for i in rewritten.result.editor.insertions}
    for step in rewritten.result.steps:
        measured = found[step.clause.number]
        waits = step.clause.number in left
        missing = [c for c in step.claims if waits and c not in (*CLAIMS, *measured)]
        for claim, error in measured.items():
            yield Check(f"{step.clause.origin}: {claim}", error < MEASURED, error)
        for claim in missing:
            yield Check(f"{step.clause.origin}: {claim}", False, math.inf, "nothing measures it")


def _measured(
    rewritten: Rewritten, insertion: Insertion, found: defaultdict[int, dict[str, float]]
) -> Any:
    method = rewritten.result.methods[insertion.clause]

    def hook(child: nn.Module, inputs: Any, outputs: Any) -> None:
        worst = found[insertion.clause]
        for claim, error in method.errors(child, inputs, outputs).items():
            worst[claim] = max(_finite(error), worst.get(claim, 0.0))

    return rewritten.module.get_submodule(insertion.path).register_forward_hook(hook)
