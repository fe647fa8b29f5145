"""Entries of a model beside its forward, as modules that passes need not write.

An entry is the program of the model with one thing changed, printed as a method of its class: what
asks for it is told so, or what is appended to it is yielded. It runs the same modules on the same
state, and no module remembers which one runs.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import fx, nn

from ..anatomy.sites import Place
from ..editing.value import Value
from ..tracing.guards import is_guard
from ..tracing.notes import HINT
from .helping import helped

if TYPE_CHECKING:
    from .base import BoundSite


class Asked(nn.Module):
    """Whether an entry of the model runs: 1 in `entry`, 0 in all others, [1]."""

    inserted_by = "vitrewrite"
    enters = "asked"

    def __init__(self, entry: str) -> None:
        super().__init__()
        self.entry = entry

    def forward(self, x: torch.Tensor, asked: bool = False) -> torch.Tensor:
        """The number, like x."""
        return x.new_full((1,), float(asked))


class Appended(nn.Module):
    """x as it is; `entry` yields the values that stand beside it, too."""

    inserted_by = "vitrewrite"
    changes = (0,)
    enters = "appended"

    def __init__(self, entry: str) -> None:
        super().__init__()
        self.entry = entry

    def forward(self, x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        """x."""
        return x


@dataclass(frozen=True)
class Entrance:
    """The entries that a site asks for."""

    site: BoundSite

    def asked(self, entry: str) -> Value:
        """A number [1] that is 1 where the model runs as an entry, and 0 everywhere else."""
        editor = self.site.editor
        graph = editor.graph("")
        for node in (n for n in graph.nodes if n.op == "call_module"):
            module = editor.root._modules.get(str(node.target))
            if isinstance(module, Asked) and module.entry == entry:
                return Value(Place("", node.name))
        image = next(n for n in graph.nodes if n.op == "placeholder")
        call = "", "", f"{entry}_asked"
        (made,) = helped(self.site, Asked(entry), call, (image,), (entry,))
        ahead = itertools.takewhile(lambda n: n.op != "call_module" or n is made, graph.nodes)
        for guard in [n for n in ahead if is_guard(n)]:  # what an image is refused for comes first
            guard.append(made)
        return Value(Place("", made.name))

    def appended(self, entry: str, value: Value) -> None:
        """An entry yields `(output, (value, ...))`, values in the order of the clauses."""
        known = self.site.editor.appended.setdefault(entry, [])
        known.append(value)
        if len(known) == 1:
            self.site.at_end(lambda: self._append(entry))

    def _append(self, entry: str) -> None:
        editor = self.site.editor
        values = editor.appended.pop(entry)
        given = [value.read(editor, "") for value in values]
        x = self._passing()
        hint = str(HINT.get(x) or "x")
        call = "", "", f"{entry}_appended"
        (made,) = helped(self.site, Appended(entry), call, (x, *given), (hint,))
        x.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)

    def _passing(self) -> fx.Node:
        """What the root makes of the stream as it leaves the blocks, or yields."""
        from .block import BlockSite

        editor, blocks = self.site.editor, self.site.context.anatomy.blocks
        place = editor.where(BlockSite(self.site.context, blocks[-1]).output.place)
        graph = editor.graph("")
        end = graph.output_node()
        if place.unit:
            for node in graph.nodes:
                path = str(node.target)
                inside = node.op == "call_module" and f"{place.unit}.".startswith(f"{path}.")
                if inside:
                    found = Value(place).read(editor, "")
                    if found.users:
                        return found
        first: list[fx.Node] = []
        fx.node.map_arg(end.args, first.append)
        return first[0]
