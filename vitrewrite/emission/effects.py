"""Which nodes must stay in order: random draws and in-place changes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx, nn

from ..tracing.notes import CHANGE, EFFECT
from ..tracing.operators import is_impure, is_inplace
from ..tracing.template import Template
from ..tracing.unit import Unit
from .access import children_at
from .once import once

_RANDOM_LAYERS = (
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
    nn.RReLU, nn.FractionalMaxPool2d,
)  # fmt: skip


def note_effects(graph: fx.Graph, units: Sequence[nn.Module]) -> None:
    """Notes in calls of children what they do in any of the modules that share the graph."""
    for node in graph.nodes:
        if node.op == "call_module":
            children = children_at(units, str(node.target))
            busy = [child for child in children if module_has_effect(child)]
            EFFECT.put(node, bool(busy))
            CHANGE.put(node, any(map(module_changes, busy)))


def has_effect(node: fx.Node) -> bool:
    """Whether evaluating the node draws random numbers or changes a tensor."""
    if node.op in ("placeholder", "output"):
        return False
    return bool(EFFECT.of(node)) if node.op == "call_module" else is_impure(node)


def may_change(node: fx.Node) -> bool:
    """Whether evaluating the node may change a tensor that was there before."""
    if node.op in ("placeholder", "get_attr", "output"):
        return False
    return bool(CHANGE.of(node)) if node.op == "call_module" else is_inplace(node.target)


@once
def module_has_effect(module: nn.Module) -> bool:
    """Whether calling the module may draw random numbers or change its input."""
    if isinstance(module, _RANDOM_LAYERS):
        return getattr(module, "p", 1.0) != 0
    if isinstance(module, Unit) and module.template is not None and _is_impure(module.template):
        return True
    return getattr(module, "inplace", False) or any(map(module_has_effect, _children(module)))


@once
def module_changes(module: nn.Module) -> bool:
    """Whether calling the module may change its input."""
    if isinstance(module, Unit) and module.template is not None and _changes(module.template):
        return True
    return getattr(module, "inplace", False) or any(map(module_changes, _children(module)))


def _children(module: nn.Module) -> list[nn.Module]:
    return [child for child in module._modules.values() if child is not None]


@once
def _is_impure(template: Template) -> bool:
    inner = (n for g in template.graphs for n in g.nodes if n.op not in ("placeholder", "output"))
    return any(map(is_impure, inner))


@once
def _changes(template: Template) -> bool:
    return any(is_inplace(n.target) for graph in template.graphs for n in graph.nodes)


def is_nothing(module: nn.Module) -> bool:
    """Whether calling the module returns its input as it is."""
    if isinstance(module, nn.Identity):
        return True
    if isinstance(module, nn.Sequential):
        return len(module) == 0
    return isinstance(module, nn.Dropout) and module.p == 0


@once
def holds_tensors(module: nn.Module) -> bool:
    """Whether there is a parameter or buffer in the module or below it."""
    own = (*module._parameters.values(), *module._buffers.values())
    return any(t is not None for t in own) or any(map(holds_tensors, _children(module)))
