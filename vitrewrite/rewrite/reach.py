"""What is trained and no gradient reaches, as a clause reads it without gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx, nn

from ..editing.clause import ClauseRef
from ..editing.fitting import modes_kept
from ..editing.taps import observe
from ..text import listing, plural
from ..tracing import walk
from ..tracing.notes import ORIGIN
from ..tracing.unit import Unit, on_meta

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
    stops = result.editor.stops or _earlier(result.root)
    if not stops:
        return
    vain = _unreached(on_meta(result.root), result.example) - result.unreached
    result.unreached |= vain
    if vain:
        known = dict.fromkeys(o for unit in stops for o in _origins(result, unit))
        origins = "; ".join(known) or "an earlier rewrite"
        count = plural(len(vain), "trained tensor")
        result.editor.warnings.append(
            f"{origins}: what it reads gets no gradient from it, and {count} from "
            f"nothing else: {listing(sorted(vain), 3)}"
        )


def refuse_trained(result: Rewrite) -> None:
    """Whether nothing is trained in front of the values that clauses read of a frozen stream.

    Raises:
        RewriteError: VR520 for tensors that are.
    """
    editor = result.editor
    if not editor.frozen:
        return
    places = {editor.where(place) for place, _ in editor.frozen}
    names = {n: p for n, p in result.root.named_parameters() if p.requires_grad}
    with modes_kept(result.root), torch.device("meta"), torch.enable_grad():
        root = on_meta(result.root).train()
        named = {n: p for n, p in root.named_parameters() if n in names}
        _, seen = observe(root, _two(result.example), places)
        moved = [v for v in seen.values() if isinstance(v, torch.Tensor) and v.requires_grad]
        total = torch.stack([v.float().sum() for v in moved]).sum() if moved else None
        found = torch.autograd.grad(total, [*named.values()], allow_unused=True) if moved else ()  # type: ignore[arg-type]
    trained = sorted(n for n, g in zip(named, found, strict=False) if g is not None)
    if trained:
        raise _trained(result, editor.frozen[0][1], trained)


def _trained(result: Rewrite, clause: ClauseRef, names: list[str]) -> Exception:
    """The error about tensors that are trained in front of what a clause reads."""
    put = (i for i in result.editor.insertions if any(n.startswith(f"{i.path}.") for n in names))
    by = dict.fromkeys(i.site.clause.origin for i in put)
    return clause.error(
        "VR520",
        f"{clause.pass_name} reads the model without gradient, and {plural(len(names), 'tensor')} "
        f"in front of what it reads {'is' if len(names) == 1 else 'are'} trained: "
        f"{listing(names, 3)}",
        notes=[f"the other clause: {origin}" for origin in by],
        suggestion="leave the other clause out, or lower it first: what is folded into the "
        "weights is frozen",
    )


def _origins(result: Rewrite, path: str) -> list[str]:
    """The clauses that read a value without gradient in a unit."""
    template = result.editor.unit(path).template
    nodes = template.graph.nodes if template is not None else ()
    readers = (user for node in nodes if _stops(node) for user in node.users)
    return [origin for user in readers if (origin := ORIGIN.get(user))]


def _earlier(root: nn.Module) -> list[str]:
    """The units in which a rewrite reads a value without gradient."""
    units = ((n, m.template) for n, m in walk.named(root) if isinstance(m, Unit))
    return [name for name, made in units if made and any(map(_stops, made.graph.nodes))]


def _stops(node: fx.Node) -> bool:
    return node.op == "call_method" and node.target == "detach"


def _unreached(root: nn.Module, example: tuple[torch.Tensor, ...]) -> frozenset[str]:
    """Names of the trained parameters that no output hangs on, in evaluation and in training."""
    left = {n: p for n, p in root.named_parameters() if p.requires_grad}
    with modes_kept(root), torch.device("meta"), torch.enable_grad():
        for training in (False, True):
            if not left:
                break  # a run of a whole model with gradients takes long, on meta too
            outputs = [t for t in _outputs(root.train(training), example) if t.requires_grad]
            if outputs:
                total = torch.stack([t.sum() for t in outputs]).sum()
                found = torch.autograd.grad(total, list(left.values()), allow_unused=True)
                left = {n: left[n] for n, g in zip(list(left), found, strict=True) if g is None}
    return frozenset(left)


def _two(example: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Two images, as batch norms need."""
    two = (torch.cat([v.to("meta")] * 2) for v in example)
    return tuple(v.float() if v.is_floating_point() else v for v in two)


def _outputs(root: nn.Module, example: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    made, _ = observe(root, _two(example), ())
    leaves = torch.utils._pytree.tree_leaves(made)
    return [t for t in leaves if isinstance(t, torch.Tensor) and t.is_floating_point()]
