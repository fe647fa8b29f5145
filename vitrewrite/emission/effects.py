"""Which nodes must stay in order: random draws and in-place changes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx, nn

from ..tracing.operators import is_impure, is_inplace
from ..tracing.unit import Unit

_RANDOM_LAYERS = (
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
    nn.RReLU, nn.FractionalMaxPool2d,
)  # fmt: skip


def note_effects(graph: fx.Graph, units: Sequence[nn.Module]) -> None:
    """Notes in calls of children what they do in any of the modules that share the graph."""
    for node in graph.nodes:
        if node.op == "call_module":
            children = [unit.get_submodule(str(node.target)) for unit in units]
            busy = [child for child in children if module_has_effect(child)]
            node.meta["effect"] = bool(busy)
            node.meta["change"] = any(map(module_changes, busy))


def has_effect(node: fx.Node) -> bool:
    """Whether evaluating the node draws random numbers or changes a tensor."""
    if node.op in ("placeholder", "output"):
        return False
    return bool(node.meta["effect"]) if node.op == "call_module" else is_impure(node)


def may_change(node: fx.Node) -> bool:
    """Whether evaluating the node may change a tensor that was there before."""
    if node.op in ("placeholder", "get_attr", "output"):
        return False
    return bool(node.meta["change"]) if node.op == "call_module" else is_inplace(node.target)


def module_has_effect(module: nn.Module) -> bool:
    """Whether calling the module may draw random numbers or change its input."""
    if isinstance(module, _RANDOM_LAYERS):
        return getattr(module, "p", 1.0) != 0
    if isinstance(module, Unit) and module.template is not None:
        for graph in module.template.graphs:
            if any(n.op not in ("placeholder", "output") and is_impure(n) for n in graph.nodes):
                return True
    return getattr(module, "inplace", False) or any(map(module_has_effect, module.children()))


def module_changes(module: nn.Module) -> bool:
    """Whether calling the module may change its input."""
    graphs = module.template.graphs if isinstance(module, Unit) and module.template else ()
    if any(is_inplace(n.target) for graph in graphs for n in graph.nodes):
        return True
    return getattr(module, "inplace", False) or any(map(module_changes, module.children()))


def is_nothing(module: nn.Module) -> bool:
    """Whether calling the module returns its input as it is."""
    if isinstance(module, nn.Identity):
        return True
    if isinstance(module, nn.Sequential):
        return len(module) == 0
    return isinstance(module, nn.Dropout) and module.p == 0
