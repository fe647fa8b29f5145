"""A rewritten model: a module with its report and its delta."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ..catalog.own_code import file_of, own_code
from ..editing.editor import join
from ..editing.measure import Propagation
from ..emission.source import Source
from ..errors import RewriteError
from ..language.model import Spec
from ..text import Pictured, Report, brief, plural
from ..tracing.unit import checkpointed
from .architecture import architecture
from .choosing import BlockChoice
from .claims import Verdict
from .engine import Rewrite
from .measures import Measures
from .text import rewritten_text
from .unlowering import key_map


class Tensors(dict[str, torch.Tensor]):
    """Tensors by name, which a prompt shows by their shapes; pickled, they are an OrderedDict."""

    def __repr__(self) -> str:
        count = sum(tensor.numel() for tensor in self.values())
        lines = [f"{plural(len(self), 'tensor')}, {count:,} numbers"]
        return brief("\n".join([*lines, *(f"  {n}: {[*t.shape]}" for n, t in self.items())]))

    def __reduce__(self) -> tuple[Any, ...]:
        # Of the types that torch loads as data, dict itself cannot be named.
        return OrderedDict, (), None, None, iter(self.items())


@dataclass
class Rewritten(Pictured):
    """What `apply` and `lower` return.

    Attributes:
        module: the rewritten model, an `nn.Module` made of the classes that `emit` prints.
        base: the captured original; shares the frozen weights.
        result: the tree, sites and clauses.
        source: the printed classes.
        unlowered: what a lowered model was lowered from, if that is known.
        errors: measures what lowering changed.
        original: the user's own module, if it is at hand.
    """

    module: nn.Module
    base: nn.Module
    result: Rewrite
    source: Source
    model_name: str
    weights: str
    measures: Measures
    cost: Propagation  # of the base, on meta
    claims: tuple[Verdict, ...] = ()
    lowered: bool = False
    model_options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    weights_request: str = "random"
    # Whether its model may be built by name: one read from a folder may name the code of somebody.
    buildable: bool = True
    trained: bool = False  # whether a delta was loaded, so that it is not at initialisation
    training: dict[str, Any] = field(default_factory=dict)  # what `tune` measured
    calibration: dict[str, Any] = field(default_factory=dict)  # what layers were solved from
    unlowered: Rewritten | None = field(default=None, repr=False)
    errors: Callable[[Rewritten], dict[str, Any]] | None = field(default=None, repr=False)
    original: nn.Module | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return rewritten_text(self)

    def __repr__(self) -> str:
        return brief(str(self))

    @property
    def spec(self) -> Spec:
        """The spec that was carried out."""
        return self.result.spec

    @property
    def stated(self) -> Spec:
        """The spec, with what a search found stated as options: it makes the model without one."""
        return architecture(self.result)

    @property
    def report(self) -> Report:
        """The content of `report.json`: what equal runs have in common, so nothing of time."""
        again = checkpointed(self.module)
        training = {k: v for k, v in self.training.items() if k != "seconds"}
        return Report(
            {
                "spec": self.spec.name,
                "model": self.model_name,
                "weights": self.weights,
                "lowered": self.lowered,
                "clauses": [step.to_json() for step in self.result.steps],
                **self.spec.absent_json,
                "order": [order.to_json() for order in self.result.orders],
                **self.measures.to_json(),
                "allocations": {k: a.to_json() for k, a in self.result.allocations.items()},
                **self.result.chosen,
                "claims": [verdict.to_json() for verdict in self.claims],
                "warnings": self.result.warnings,
                **({"checkpointing": list(again)} if again else {}),
                **({"training": training} if training else {}),
                **({"calibration": self.calibration} if self.calibration else {}),
                **self.lowering,
            }
        )

    @cached_property
    def lowering(self) -> Report:
        """Of a lowered model: the errors of `lowering`, and the `keys` that changed.

        Measured when first asked for, which takes a few forwards.
        """
        if self.unlowered is None or self.errors is None:
            return Report({})
        return Report({"lowering": self.errors(self), "keys": key_map(self)})

    def inserted(self, pass_name: str) -> list[nn.Module]:
        """The modules that a pass put in, in the order of the clauses and sites."""
        own = (i for i in self.result.editor.insertions if i.pass_name == pass_name)
        return [self.module.get_submodule(i.path) for i in own]

    def choice(self, pass_name: str) -> BlockChoice:
        """What goes by the `drop ... by` clause of a pass; nothing where it has no sites."""
        return self.result.choices.get(pass_name, BlockChoice((), ()))

    def delta(self) -> dict[str, torch.Tensor]:
        """What the spec added or trains: `<site>.<pass>.<tensor>`, and base parameters by name.

        The tensors of a pass are named and shaped as its card has them; they share memory with
        the module, so writing to one changes the model.
        """
        found = Tensors()
        for name, tensor in self._delta():
            if name in found:
                raise RewriteError("VR405", f"the delta has two tensors called '{name}'")
            found[name] = tensor
        return found

    def _delta(self) -> Iterator[tuple[str, torch.Tensor]]:
        for insertion in self.result.editor.insertions:
            method = self.result.methods.of(insertion)
            module, name = self.module.get_submodule(insertion.path), insertion.pass_name
            called = getattr(method, "named", "") or name
            clause, where = insertion.site.clause, f"delta() at '{insertion.site.role}'"
            with own_code(type(method), name, where, clause.span):
                found = list(method.delta(module))
            if len(found) != len(insertion.owners):
                raise clause.error(
                    "VR429",
                    f"pass {name}: {where} has tensors of {len(found)} sites, and the "
                    f"module is at {len(insertion.owners)}",
                    notes=[f"in {file_of(type(method))}"],
                    suggestion="let delta(module) yield a dict for each",
                )
            for owner, tensors in zip(insertion.owners, found, strict=True):
                for key, tensor in tensors.items():
                    yield join(owner, called, key), tensor.detach()
        parameters = dict(self.module.named_parameters())
        for name in sorted(self.result.base_trained):
            yield name, parameters[name].detach()
