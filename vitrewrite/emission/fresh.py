"""A tensor that is made and changed at once: the change makes another one, which may be left out.

What changes a tensor stays in its place, so one of two programs cannot do without it.
"""

from __future__ import annotations

import torch
from torch import fx, nn

from ..tracing import walk
from ..tracing.template import Template
from ..tracing.unit import Unit

_MAKES = frozenset({torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like})
_CHANGES = {"masked_fill_": "masked_fill"}


def settle_fresh(root: nn.Module) -> None:
    """Has programs make the tensor that they would make and change; templates are replaced."""
    made: dict[int, Template] = {}
    for unit in walk.modules(root):
        if isinstance(unit, Unit) and unit.template is not None:
            template = unit.template
            if any(map(_found, template.graphs)):
                if id(template) not in made:
                    made[id(template)] = _settled(template)
                unit.__dict__["template"] = made[id(template)]


def _found(graph: fx.Graph) -> list[fx.Node]:
    return [n for n in graph.nodes if n.op == "call_method" and _is_fresh(n)]


def _is_fresh(node: fx.Node) -> bool:
    owner = node.args[0]
    made = isinstance(owner, fx.Node) and owner.op == "call_function" and owner.target in _MAKES
    return made and node.target in _CHANGES and set(owner.users) == {node}  # type: ignore[union-attr]


def _settled(template: Template) -> Template:
    settled = template.clone()
    for graph in settled.graphs:
        for node in _found(graph):
            node.target = _CHANGES[str(node.target)]
    return settled
