"""What a lowered model costs an image whose tokens pass some parts and skip others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from ..editing import wiring
from ..editing.editor import Editor, Insertion, join, relative
from ..editing.measure import Propagation
from ..sites.rows import ActiveRows, Gated, PaddedRows
from ..tracing.unit import duplicate, on_meta
from .lowering import lower_tree
from .rewritten import Rewritten


def gates_of(editor: Editor) -> list[tuple[Insertion, nn.Module]]:
    """The inserted modules that let tokens pass, each with what multiplies, or takes out the rows.

    In the order in which the clauses put them in.
    """
    found: list[tuple[Insertion, nn.Module]] = []
    for insertion in editor.insertions:
        readers = _readers(editor, insertion.path)
        route = next((m for m in readers if isinstance(m, (Gated, ActiveRows, PaddedRows))), None)
        if route is not None:
            found.append((insertion, route))
    return found


def _readers(editor: Editor, path: str) -> Iterator[nn.Module]:
    """The modules that are called with what a module yields."""
    for unit, calls in wiring.calls(editor, path):
        target = relative(path, unit)
        made = [n for n in calls if n.target == target]
        made += [user for n in made for user in n.users if user.op == "call_function"]
        readers: list[fx.Node] = [u for n in made for u in n.users if u.op == "call_module"]
        yield from (editor.root.get_submodule(join(unit, str(u.target))) for u in readers)


def costs_of(rewritten: Rewritten, active: torch.Tensor, patches: list[int]) -> torch.Tensor:
    """Multiply-accumulates of images, each run alone by the lowered model.

    A part costs a + b t + c t^2 for t active tokens, where c is that of attention: three counts on
    meta tell it, as those of a table of all t would.

    Args:
        rewritten: the model, not lowered.
        active: how many patches pass each gate, [images, gates].
        patches: how many patches there are at each.

    Returns:
        [images], float64.
    """
    result = rewritten.result
    twin = duplicate(on_meta(rewritten.module), lambda p: p, lambda b: b)
    editor = lower_tree(twin, result.editor, result.methods)
    routes = dict(zip(_owners(rewritten), patches, strict=True))
    taken = {i.path: m for i, m in gates_of(editor) if not isinstance(m, Gated)}
    rows: list[Any] = [taken.get(path) for path in routes]
    for module, count in zip(rows, patches, strict=True):
        _set(module, 0, count)
    known = Propagation(twin, result.example, rewritten.cost)
    total = torch.full((len(active),), float(known.macs), dtype=torch.float64)
    for i, (module, count) in enumerate(zip(rows, patches, strict=True)):
        if module is None or getattr(module, "fixed", False):
            continue
        points = sorted({0, count // 2, count})
        found = []
        for point in points:
            _set(module, point, count)
            found.append(float(Propagation(twin, result.example, known).macs - known.macs))
        _set(module, 0, count)
        total += _through(points, found, active[:, i].double())
    return total


def _owners(rewritten: Rewritten) -> list[str]:
    return [insertion.path for insertion, _ in gates_of(rewritten.result.editor)]


def _set(module: Any, active: int, patches: int) -> None:
    """Has rows on meta be so many of the patches."""
    if module is not None and not getattr(module, "fixed", False):
        module.number, module.rate = 0, (active + 0.5) / patches


def _through(points: list[int], values: list[float], at: torch.Tensor) -> torch.Tensor:
    """The polynomial through some points, by Lagrange."""
    total = torch.zeros_like(at)
    for i, value in enumerate(values):
        term = torch.full_like(at, value)
        for j, other in enumerate(points):
            if j != i:
                term *= (at - other) / (points[i] - other)
        total += term
    return total
