"""One adapted linear layer, alone and with what a pass put beside it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ..rewrite.rewritten import Rewritten
from ..sites import LinearSite
from ..tracing.unit import Unit


def layer_steps(
    rewritten: Rewritten, module: nn.Module, batch: int, like: torch.Tensor
) -> dict[str, Callable[[], None]]:
    """Forward and backward of the first adapted linear layer; empty if there is none.

    Args:
        rewritten: says where insertions are.
        module: the model to take the layer from, in eval mode.
        batch: images per step.
        like: a tensor on the device and of the dtype.
    """
    found = _first_adapted(rewritten, module)
    if found is None:
        return {}
    layer, branch, width = found
    tokens = rewritten.measures.tokens[0] or 1
    x = torch.randn(batch, tokens, width).to(like).requires_grad_()
    with torch.no_grad():
        probe = torch.randn_like(layer(x))

    def base() -> None:
        torch.autograd.backward(layer(x), probe)

    def adapted() -> None:
        torch.autograd.backward(branch(x, layer(x)), probe)

    return {"base": base, "rewritten": adapted}


def _first_adapted(
    rewritten: Rewritten, module: nn.Module
) -> tuple[nn.Module, nn.Module, int] | None:
    """The first linear layer whose output an inserted module `branch(x, layer(x))` updates."""
    for insertion in rewritten.result.editor.insertions:
        if not isinstance(insertion.site, LinearSite):
            continue
        site = insertion.site.parts[0]
        unit = module.get_submodule(site.call.unit)
        layer = module.get_submodule(site.weight.removesuffix(".weight"))
        branch = module.get_submodule(insertion.path)
        if isinstance(unit, Unit) and _updates(unit, layer, branch):
            return layer, branch, site.in_features
    return None


def _updates(unit: Unit, layer: nn.Module, branch: nn.Module) -> bool:
    """Whether a graph calls `branch(x, layer(x))`."""
    assert unit.template is not None
    called = {
        n: unit.get_submodule(str(n.target))
        for n in unit.template.graph.nodes
        if n.op == "call_module"
    }
    return any(
        called[node] is branch and len(node.args) == 2 and called.get(node.args[1]) is layer
        for node in called
    )
