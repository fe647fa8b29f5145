"""A model whose clauses are lowered one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..rewrite.lowering import in_turn, lowered_tree
from ..tracing.configuration import freeze
from ..tracing.unit import Unit
from .numeric import given, sample
from .runs import Situation, outcome

if TYPE_CHECKING:
    from ..rewrite.rewritten import Rewritten


@dataclass(frozen=True)
class Stage:
    """A model in which one more clause is lowered.

    Attributes:
        clause: the number of that clause.
        output: what the model makes of an image.
        unchanged: paths of modules of the clause that are in the model as they were.
    """

    clause: int
    output: list[torch.Tensor]
    unchanged: tuple[str, ...]


def stages(twin: Rewritten) -> Iterator[Stage]:
    """Each clause that put something in, where the last of its modules is lowered.

    One of them may wait for another clause at its layer. The last stage is the lowered model.
    What a clause shares among its sites, as factors, waits for them alone and has no turn.
    """
    done: list[int] = []
    insertions = in_turn(twin.result.editor.insertions)
    folding = {i.clause for i in insertions if i.folds}
    turns = [i.clause for i in insertions if i.folds or i.clause not in folding]
    for number in reversed(dict.fromkeys(reversed(turns))):
        done.append(number)
        module = interpreted(lowered_tree(twin, done)[0])
        yield Stage(number, image(module, twin), tuple(_unchanged(twin, module, number)))


def image(module: nn.Module, rewritten: Rewritten) -> list[torch.Tensor]:
    """What a module makes of one image."""
    return given(outcome(module, lambda m: m(*sample(rewritten, 1)), Situation()))


def interpreted(root: nn.Module) -> nn.Module:
    """Makes units run their graphs instead of printed classes, which takes no printing."""
    for module in root.modules():
        if isinstance(module, Unit):
            module.__class__ = Unit
    return root


def _unchanged(rewritten: Rewritten, lowered: nn.Module, clause: int) -> Iterator[str]:
    after = dict(lowered.named_modules())
    for each in rewritten.result.editor.insertions:
        there = each.clause == clause and each.path in after
        if there and _same(each.module, after[each.path]):
            yield each.path


def _same(before: nn.Module, after: nn.Module) -> bool:
    """Whether two modules compute the same in the same way."""
    if type(before) is not type(after) or _settings(before) != _settings(after):
        return False
    first, second = before.state_dict(), after.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(v, second[k]) for k, v in first.items()
    )


def _settings(module: nn.Module) -> Any:
    hidden = ("training", "template", "example", "constants", "classes")
    own = {k: v for k, v in vars(module).items() if not k.startswith("_") and k not in hidden}
    return freeze(own)
