"""Values inside a model while it runs: read off its graphs, without hooks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..anatomy.sites import Attention, Place
from ..tracing.unit import Unit, run_graph
from .editor import Editor, join

Change: TypeAlias = Callable[[Any], Any]


def observe(
    root: nn.Module,
    inputs: tuple[Any, ...],
    places: Collection[Place],
    changes: Mapping[Place, Change] | None = None,
) -> tuple[Any, dict[Place, Any]]:
    """Runs a tree of units by its graphs, and keeps the values at some places.

    What classes were made of the units does not count: of a tree that was edited since they do not
    hold any more.

    Args:
        root: the tree, in the mode that it is to run in.
        inputs: what it is called with.
        places: where to look; of a unit that is called more than once, the last call counts.
        changes: what the model goes on with at some places, given what was there.

    Returns:
        The output, and the values by place.
    """
    seen: dict[Place, Any] = {}
    changes = changes or {}
    return _run(root, "", inputs, frozenset({*places, *changes}), seen, changes), seen


def _run(
    module: nn.Module,
    path: str,
    args: tuple[Any, ...],
    places: frozenset[Place],
    seen: dict[Place, Any],
    changes: Mapping[Place, Change],
) -> Any:
    inside = {p for p in places if not path or p.unit == path or p.unit.startswith(f"{path}.")}
    if not isinstance(module, Unit) or module.template is None:
        return module(*args)

    def call(node: fx.Node, given: tuple[Any, ...]) -> Any:
        target = str(node.target)
        return _run(module.get_submodule(target), join(path, target), given, places, seen, changes)

    def note(node: fx.Node, values: dict[fx.Node, Any]) -> None:
        if (place := Place(path, node.name)) in inside:
            if place in changes:
                values[node] = changes[place](values[node])
            seen[place] = values[node]

    graph = module.template.graph if inside else module.program
    return run_graph(graph, module, args, call, note)


@dataclass(frozen=True)
class WeightsTap:
    """The weights of a softmax attention, in a model as it is after rewriting.

    Attributes:
        places: the values that they are read off.
    """

    heads: int
    places: tuple[Place, ...]
    scale: float | None = None

    @classmethod
    def of(cls, editor: Editor, attention: Attention) -> WeightsTap | None:
        """The tap of an attention, or None if it is not there any more."""
        place = editor.where(attention.core)
        module = dict(editor.root.named_modules()).get(place.unit)
        if not isinstance(module, Unit) or module.template is None:
            return None
        nodes = {n.name: n for n in module.template.graph.nodes}
        core = nodes.get(place.node)
        if core is None:
            return None
        if core.target is not F.scaled_dot_product_attention:
            return cls(attention.heads, (Place(place.unit, str(core.args[0])),))
        mask = core.args[3] if len(core.args) > 3 else core.kwargs.get("attn_mask")
        operands = [*core.args[:2], *([mask] if isinstance(mask, fx.Node) else [])]
        scale: Any = core.kwargs.get("scale")
        places = tuple(Place(place.unit, str(node)) for node in operands)
        return cls(attention.heads, places, scale)

    def weights(self, seen: Mapping[Place, Any]) -> torch.Tensor:
        """The weights [batch, queries, keys], the mean over heads."""
        return self.by_head(seen).mean(1)

    def by_head(self, seen: Mapping[Place, Any]) -> torch.Tensor:
        """The weights [batch, heads, queries, keys]; windows of an image are of the batch."""
        values = [seen[place] for place in self.places]
        found: torch.Tensor = values[0] if len(values) == 1 else self._softmax(*values)
        if found.dim() == 3:
            found = found.unflatten(0, (-1, self.heads))  # type: ignore[no-untyped-call]
        return found.flatten(0, -4) if found.dim() > 4 else found

    def _softmax(
        self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        scale = query.shape[-1] ** -0.5 if self.scale is None else self.scale
        scores = query @ key.transpose(-2, -1) * scale
        if mask is not None and mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, float("-inf"))
        elif mask is not None:
            scores = scores + mask
        return scores.softmax(-1)
