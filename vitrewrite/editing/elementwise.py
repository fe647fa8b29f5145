"""Whether what is between layers does to each of its channels the same, by itself."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch import fx, nn
from torch.nn.modules import activation, dropout

from ..tracing.unit import Unit
from . import slices

_ALONE = frozenset({
    "gelu", "relu", "relu_", "relu6", "silu", "silu_", "sigmoid", "tanh", "hardswish", "hardtanh",
    "leaky_relu", "elu", "selu", "celu", "mish", "softplus", "hardsigmoid", "erf", "exp", "neg",
    "square", "pow", "clamp", "to", "type_as", "float", "clone", "contiguous", "dropout",
})  # fmt: skip
"""Functions of each number by itself."""
_TOGETHER = frozenset({"add", "sub", "mul", "div", "truediv", "mul_", "add_", "imul", "iadd"})
"""Functions of numbers at the same place of two values."""
_HALVES = frozenset({"chunk", "getitem"})
_OTHERS = (nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d, nn.MultiheadAttention, nn.PReLU)


def between(sources: Iterable[fx.Node], target: fx.Node) -> set[fx.Node]:
    """The nodes that are made of `sources` and that `target` is made of, both included."""
    sources = list(sources)
    return slices.behind(sources) & slices.ahead([target]) | {*sources, target}


def first_other(
    unit: nn.Module, nodes: Iterable[fx.Node], known: Collection[fx.Node]
) -> fx.Node | None:
    """A node that is no function of each channel of values that are known: a layer, if one is."""
    others = [n for n in nodes if not _is_alone(unit, n, known)]
    return min(others, key=lambda n: n.op != "call_module", default=None)


def _is_alone(unit: nn.Module, node: fx.Node, known: Collection[fx.Node]) -> bool:
    given = node.all_input_nodes
    if any(n not in known for n in given):
        return False
    if node.op == "call_module":
        return len(given) == 1 and _is_function(unit.get_submodule(str(node.target)))
    name = getattr(node.target, "__name__", str(node.target))
    if node.op not in ("call_function", "call_method"):
        return False
    return name in _TOGETHER or (len(given) == 1 and name in _ALONE | _HALVES)


def _is_function(module: nn.Module) -> bool:
    """Whether a module without state changes each number by itself."""
    if next(module.parameters(), None) is not None or next(module.buffers(), None) is not None:
        return False
    if isinstance(module, Unit):
        nodes = [] if module.template is None else list(module.template.graph.nodes)
        body = [n for n in nodes if n.op not in ("placeholder", "output")]
        return bool(nodes) and first_other(module, body, nodes) is None
    known = type(module).__module__ == activation.__name__ and not isinstance(module, _OTHERS)
    return known or isinstance(module, (nn.Identity, dropout.Dropout))
