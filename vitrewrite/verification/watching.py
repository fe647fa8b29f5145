"""Looks at the modules that passes put in while a model runs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..catalog.own_code import own_code
from ..tracing.leaves import changed_by
from .runs import apart

if TYPE_CHECKING:
    from ..editing.editor import Insertion
    from ..rewrite.rewritten import Rewritten


@contextmanager
def changes_watched(rewritten: Rewritten, found: dict[str, float]) -> Iterator[None]:
    """Notes by path of an inserted module how far off its outputs are from what they are forms of.

    Only of modules that change values; infinite for one that never runs.
    """
    handles = []
    for insertion in rewritten.result.editor.insertions:
        if any(i is not None for i in changed_by(insertion.module)):
            found[insertion.path] = math.nan  # until it runs
            handles += _compared(insertion, found)
    with _removed(handles):
        yield
    found |= {path: math.inf for path, error in found.items() if math.isnan(error)}


def _compared(insertion: Insertion, found: dict[str, float]) -> list[Any]:
    given: list[Any] = []

    def before(_: nn.Module, args: Any) -> None:
        # Copies: a module may write into what it is given.
        given[:] = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]

    def after(module: nn.Module, _: Any, outputs: Any) -> None:
        results = outputs if isinstance(outputs, tuple) else (outputs,)
        pairs = zip(results, changed_by(module), strict=False)
        error = max(apart([given[i]], [out]) for out, i in pairs if i is not None)
        known = found[insertion.path]
        found[insertion.path] = error if math.isnan(known) else max(error, known)

    module = insertion.module
    return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


@contextmanager
def errors_watched(rewritten: Rewritten, found: dict[int, dict[str, float]]) -> Iterator[None]:
    """Notes by clause what `errors` of its pass measures, the worst of all calls."""

    waived = rewritten.result.editor.waived

    def watch(insertion: Insertion) -> Any:
        method = rewritten.result.methods.of(insertion)
        worst = found.setdefault(insertion.clause, {})

        def hook(child: nn.Module, inputs: Any, outputs: Any) -> None:
            where = f"errors() at '{insertion.site.role}'"
            with own_code(type(method), insertion.pass_name, where):
                measured = method.errors(child, _given(inputs), outputs)
            for claim, error in measured.items():
                if insertion.site.role in waived.get((insertion.clause, claim), {}):
                    continue
                finite = error if math.isfinite(error) else math.inf
                worst[claim] = max(finite, worst.get(claim, 0.0))

        return rewritten.module.get_submodule(insertion.path).register_forward_hook(hook)

    with _removed([watch(insertion) for insertion in rewritten.result.editor.insertions]):
        yield


def _given(inputs: Any) -> Any:
    """What a call is given: a class that some blocks share hands on None for what one has not."""
    last = max((i for i, each in enumerate(inputs) if each is not None), default=-1)
    return inputs[: last + 1]


@contextmanager
def _removed(handles: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
