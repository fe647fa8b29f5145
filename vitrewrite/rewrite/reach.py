"""What is trained and no gradient reaches, as a clause reads it without gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from ..editing.fitting import modes_kept
from ..text import listing, plural
from ..tracing.notes import ORIGIN
from ..tracing.unit import on_meta

if TYPE_CHECKING:
    from .engine import Rewrite


def tell_unreached(result: Rewrite) -> None:
    """Notes the parameters that are trained in vain, and warns of them.

    A clause may read values of the model without gradient, as a bypass does; what other clauses
    train in front of these values then changes the output, and never changes itself.
    """
    by_loss = tuple(f"{path}." for path in result.editor.by_loss)
    trained = (n for n, p in result.root.named_parameters() if p.requires_grad)
    result.unreached = frozenset(n for n in trained if by_loss and n.startswith(by_loss))
    if not result.editor.stops:
        return
    vain = _unreached(on_meta(result.root), result.example) - result.unreached
    result.unreached |= vain
    if vain:
        origins = dict.fromkeys(o for unit in result.editor.stops for o in _origins(result, unit))
        count = plural(len(vain), "trained tensor")
        result.editor.warnings.append(
            f"{'; '.join(origins)}: what it reads gets no gradient from it, and {count} from "
            f"nothing else: {listing(sorted(vain), 3)}"
        )


def _origins(result: Rewrite, path: str) -> list[str]:
    """The clauses that read a value without gradient in a unit."""
    template = result.editor.unit(path).template
    nodes = template.graph.nodes if template is not None else ()
    readers = (user for node in nodes if _stops(node) for user in node.users)
    return [origin for user in readers if (origin := ORIGIN.get(user))]


def _stops(node: fx.Node) -> bool:
    return node.op == "call_method" and node.target == "detach"


def _unreached(root: nn.Module, example: tuple[torch.Tensor, ...]) -> frozenset[str]:
    """Names of the trained parameters that no output hangs on, in evaluation and in training."""
    left = {n: p for n, p in root.named_parameters() if p.requires_grad}
    with modes_kept(root), torch.device("meta"), torch.enable_grad():
        for training in (False, True):
            outputs = [t for t in _outputs(root.train(training), example) if t.requires_grad]
            if left and outputs:
                total = torch.stack([t.sum() for t in outputs]).sum()
                found = torch.autograd.grad(total, list(left.values()), allow_unused=True)
                left = {n: left[n] for n, g in zip(list(left), found, strict=True) if g is None}
    return frozenset(left)


def _outputs(root: nn.Module, example: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    two = (torch.cat([v.to("meta")] * 2) for v in example)  # batch norms need as many
    values = (v.float() if v.is_floating_point() else v for v in two)
    made: Any = root(*values)
    leaves = torch.utils._pytree.tree_leaves(made)
    return [t for t in leaves if isinstance(t, torch.Tensor) and t.is_floating_point()]
