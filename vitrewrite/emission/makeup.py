"""What modules are made of, as far as they need the same for one class."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..tracing.template import Template
from ..tracing.unit import Unit
from .access import child_of, is_sequence


def parts_of(unit: Unit) -> Any:
    """The children and tensors of a unit, as far as its constructor must be the same."""
    hidden = unit._non_persistent_buffers_set
    return (
        unit.kept,
        tuple(k for k, m in unit._modules.items() if m is not None),
        tuple((k, p.dim(), _special(p)) for k, p in unit._parameters.items() if p is not None),
        tuple(
            (k, b.dim(), k in hidden or (b.dtype,)) for k, b in unit._buffers.items()
            if b is not None
        ),
    )  # fmt: skip


def _special(parameter: nn.Parameter) -> Any:
    return None if parameter.dtype.is_floating_point else parameter.dtype


def lists_of(unit: Unit, template: Template) -> Any:
    """What holds the children of children that the programs call or read, and how many it holds."""
    targets = {
        str(n.target)
        for graph in template.graphs
        for n in graph.nodes
        if n.op in ("call_module", "get_attr")
    }
    paths = sorted({t.rpartition(".")[0] for t in targets} - {""})
    found = []
    for path in paths:
        owner = child_of(unit, path)
        held = len(owner._modules) if is_sequence(owner) else type(owner)
        found.append((path, held))
    return tuple(found)
