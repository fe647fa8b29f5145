"""What became of the patches of one whole grid, regrouping after regrouping."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from ..anatomy.sites import Place
from ..editing.editor import Editor, after
from ..editing.stream import Regrouping, Stream
from ..editing.value import Value
from ..tracing.notes import ARITY, HINT
from .base import BoundSite


class KeptPatches(nn.Module):
    """For each patch behind a regrouping, [batch, patches], the patch whose position it takes.

    `kept` [batch, tokens] counts tokens, `before` patches of the regrouping in front.
    """

    inserted_by = "vitrewrite"

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix

    def forward(self, kept: torch.Tensor, before: torch.Tensor | None = None) -> torch.Tensor:
        """The number of the patch among all of them."""
        number = (kept[:, self.prefix :] - self.prefix).clamp(min=0)
        return number if before is None else before.gather(1, number)


class IntoPatches(nn.Module):
    """For each patch of all, [batch, patches], which one behind a regrouping it is in; or -1.

    `into` [batch, tokens] counts tokens, `before` patches of the regrouping in front.
    """

    inserted_by = "vitrewrite"

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix

    def forward(self, into: torch.Tensor, before: torch.Tensor | None = None) -> torch.Tensor:
        """The number of the patch among those that are left."""
        number = (into[:, self.prefix :] - self.prefix).clamp(min=-1)
        if before is None:
            return number
        return number.gather(1, before.clamp(min=0)).where(before >= 0, -1)


class Trail:
    """The regroupings since the grid was whole, and what they make of its patches.

    Values are made where something asks for them: else no module is traced.
    """

    def __init__(self, editor: Editor, stream: Stream) -> None:
        self.editor, self.stream = editor, stream
        self.steps: list[Regrouping] = []
        self._made: dict[tuple[type, int], Value] = {}

    def kept(self, why: str) -> Value:
        """Of each patch that is left behind all steps, the position: its number at first.

        Raises:
            RewriteError: VR450 if a module does not tell, with what asks for it.
        """
        return self._composed(KeptPatches, len(self.steps), why)

    def into(self, why: str) -> Value:
        """Of each patch that there was, which of those that are left it is in, or -1.

        Raises:
            RewriteError: VR450 if a module does not tell, with what asks for it.
        """
        return self._composed(IntoPatches, len(self.steps), why)

    def _composed(self, kind: type[KeptPatches] | type[IntoPatches], count: int, why: str) -> Value:
        if (kind, count) not in self._made:
            step = self.steps[count - 1]
            into, kept = self._traced(step, why)
            name, given = ("kept", [kept]) if kind is KeptPatches else ("into", [into])
            site, unit = step.made.site, step.made.unit
            if count > 1:
                given.append(self._composed(kind, count - 1, why).read(self.editor, unit))
            module = kind(self.stream.known(step.position).prefix)
            assert isinstance(site, BoundSite)
            made = site.help(module, unit, given, f"{site._stem}_{name}", name)
            self._made[kind, count] = Value(Place(unit, made.name))
        return self._made[kind, count]

    def _traced(self, step: Regrouping, why: str) -> tuple[fx.Node, fx.Node]:
        """What the module of a step yields besides once it is traced."""
        module: Any = step.made.module
        assert isinstance(step.made.site, BoundSite)
        if not hasattr(module, "traced"):
            raise step.clause.error(
                "VR450",
                f"{step.clause.pass_name}: {type(module).__name__} does not tell where tokens go, "
                f"and {why}",
                suggestion="give it `traced: bool = False`; if so, it yields x, size, into, kept",
            )
        module.traced = True
        return _results(step.made.site.call_of(step.made))


def _results(call: fx.Node) -> tuple[fx.Node, fx.Node]:
    """The nodes of `into` and `kept` of a call that yields them."""
    items: dict[Any, fx.Node] = {u.args[1]: u for u in call.users if u.target is operator.getitem}
    ARITY.put(call, 4)
    for index, name in ((2, "into"), (3, "kept")):
        if index not in items:
            with after(call.graph, [call, *items.values()]):
                items[index] = call.graph.call_function(operator.getitem, (call, index))
            HINT.put(items[index], name)
    return items[2], items[3]
