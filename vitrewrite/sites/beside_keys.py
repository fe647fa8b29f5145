"""Verbs of rows that stand beside the keys and values of an attention."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..editing.editor import after
from ..tracing.leaves import changed_by
from ..tracing.notes import ROWS, VALUE
from .attending import AttendingSite
from .core import add_bias, bias_of, operand_of, set_operand, settle


@dataclass(frozen=True, eq=False)
class RowsBesideSite(AttendingSite):
    """An attention whose queries see more rows than the tokens."""

    def extend_kv(self, module: nn.Module, rows: int, *, before: bool = True) -> None:
        """`k, v = module(k, v)`, which puts rows before or behind those of the tokens.

        The bias of the scores grows with them: zero on the new rows. A module with a third output
        gives the bias of the new keys, [batch or 1, 1, 1, keys], itself.

        Args:
            module: what makes the new keys and values.
            rows: how many it adds.
            before: on which side.
        """
        core = self._alone()
        k, v = operand_of(core, 1), operand_of(core, 2)
        biased = len(changed_by(module)) == 3
        hints = ("keys", "values", "bias") if biased else ("keys", "values")
        results = self.put(module, self._unit, (k, v), hints, changed=(0, 1))
        settle(core, (k, v), results)
        cores = [core, *_twins(core, k, v)]
        for each in cores:
            set_operand(each, 1, results[0])
            set_operand(each, 2, results[1])
        self._lengthened(cores, (rows, 0) if before else (0, rows))
        for each in cores if biased else ():
            add_bias(each, results[2])

    @property
    def takes_rows(self) -> bool:
        """Whether a module beside its keys takes rows of other clauses, `(k, v, *rows)`, too."""
        call = self._beside_keys(self._scored())
        return call is not None and len(call.args) == 2

    def give_rows(self, module: nn.Module, rows: int) -> None:
        """At lowering: what is beside the keys puts `rows` more in front of them, of `module()`.

        Where `takes_rows`: keys and values are copied once, not once for each clause.
        """
        core = self._scored()
        call = self._beside_keys(core)
        assert call is not None
        k, v = operand_of(core, 1), operand_of(core, 2)
        found = self.put(module, self._unit, (), ("row_keys", "row_values"))
        call.args = (*call.args, *found)
        self._lengthened([core, *_twins(core, k, v)], (rows, 0))

    def _beside_keys(self, core: fx.Node) -> fx.Node | None:
        """The call of what puts rows beside the keys last, if it takes more of them."""
        k, v = operand_of(core, 1), operand_of(core, 2)
        call: Any = k.args[0] if k.target is operator.getitem else None
        if not isinstance(call, fx.Node) or call.op != "call_module" or v.args[0] is not call:
            return None
        module = self.editor.unit(self._unit).get_submodule(str(call.target))
        return call if getattr(module, "takes_rows", False) else None

    def _lengthened(self, cores: Sequence[fx.Node], pads: tuple[int, int]) -> None:
        """There are more keys in front and behind: biases of scores are zero for them."""
        padded = dict[fx.Node, fx.Node]()
        for core in cores:
            mask = bias_of(core)
            if mask is not None:
                if mask not in padded:
                    padded[mask] = self._padded(mask, pads)
                set_operand(core, 3, padded[mask])
            old = ROWS.get(core, (0, 0))
            ROWS.put(core, (old[0] + pads[0], old[1] + pads[1]))

    def _padded(self, bias: fx.Node, rows: tuple[int, int]) -> fx.Node:
        value = VALUE.get(bias)
        if isinstance(value, torch.Tensor) and value.dtype == torch.bool:
            raise self.unfit("its mask is boolean, and more keys need a bias")
        known: Any = bias.args[1] if bias.target is F.pad else ()
        if known and all(isinstance(n, int) for n in known):  # by an earlier clause: once is enough
            bias.update_arg(1, tuple(a + b for a, b in zip(known, rows, strict=True)))
            return bias
        with after(bias.graph, [bias]):
            return bias.graph.call_function(F.pad, (bias, rows))


def _twins(core: fx.Node, k: fx.Node, v: fx.Node) -> list[fx.Node]:
    """Calls of SDPA by which rows beside the tokens ask for the same keys and values."""
    found = [n for n in k.users if n.target is core.target and n is not core]
    return [n for n in found if operand_of(n, 1) is k and operand_of(n, 2) is v]
