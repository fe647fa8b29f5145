"""A spec carried out on a captured model, before it has weights: printed, or given them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ..anatomy import analyse
from ..anatomy.sites import Anatomy
from ..editing.measure import BrokenError, Propagation
from ..editing.stream import Stated, Tokens
from ..errors import RewriteError
from ..language.model import Spec
from ..language.settings import FEATURES
from ..models.request import Request
from ..sensitivity import Allocation
from ..sensitivity.profile import Profile
from ..text import Pictured, Several, brief
from ..tracing.inputs import example_of_one
from ..tracing.unit import bare, checkpointed, on_meta
from .aims import Aim, met
from .claims import Verdict, judge
from .conflicts import needed
from .engine import Rewrite, rewrite
from .factors import factors_of
from .frozen import cut_of
from .measures import Measures, measure
from .order import Order
from .reach import refuse_trained, tell_unreached
from .step import Step
from .text import plan_text


@dataclass(frozen=True)
class Compilation(Pictured):
    """What a spec changes in a model, clause by clause, and what that costs.

    Attributes:
        request: which model, with which weights.
        base: the captured model; on meta if nobody asked for weights.
        result: the tree with the spec carried out on it, on meta.
        original: a run of the base on meta.
        claims: those of the spec, judged where that takes no weights.
        pairs: tensors on meta, each with the one of the base that it stands for.
        aims: costs that clauses were to meet, and what was chosen for them.
    """

    request: Request
    base: nn.Module
    result: Rewrite
    original: Propagation
    measures: Measures
    claims: tuple[Verdict, ...]
    pairs: Several[tuple[torch.Tensor, torch.Tensor]] = field(repr=False)
    aims: tuple[Aim, ...] = ()

    @classmethod
    def of(
        cls,
        request: Request,
        base: nn.Module,
        *,
        profile: Profile | None = None,
        allocations: Mapping[str, Any] | None = None,
        original: Propagation | None = None,
        anatomy: Anatomy | None = None,
    ) -> Compilation:
        """Carries out the spec of a request on its captured model, which stays as it is.

        Args:
            request: what it was captured from.
            base: the captured model.
            profile: measurements for `sensitive(...)`.
            allocations: what each `sensitive(...)` bought before, as a lock file has it.
            original: a run of the captured model on meta, if there is one.
            anatomy: its places, if they are known.

        Raises:
            VitrewriteError: everything that is wrong with the spec on this model.
        """
        original = original or run(base)

        def carried(spec: Spec) -> tuple[Rewrite, list[tuple[torch.Tensor, torch.Tensor]]]:
            root, pairs = bare(base)
            with torch.device("meta"):
                result = rewrite(
                    spec,
                    root,
                    profile=profile,
                    allocations=allocations,
                    original=original,
                    anatomy=anatomy,
                )
            return result, pairs

        spec, aims = met(
            request.spec,
            base,
            lambda: anatomy or analyse(bare(base)[0], tuple(request.spec.bases)),
            lambda spec: measure(carried(spec)[0], original).macs,
        )
        result, pairs = carried(spec)
        refuse_trained(result)
        factors_of(result)  # what a recipe says of parts is wrong before anything is trained
        measures = measure(result, original)
        tell_unreached(result)
        claims = judge(spec, measures, result)
        return cls(request, base, result, original, measures, claims, Several(pairs), aims)

    @property
    def spec(self) -> Spec:
        """The spec that was carried out."""
        return self.result.spec

    @property
    def model(self) -> str:
        """The model's name."""
        return self.request.name

    @property
    def weights(self) -> str:
        """The weights, in words."""
        return self.request.described

    @property
    def anatomy(self) -> Anatomy:
        """The sites of the model as it was."""
        return self.result.anatomy

    @property
    def base_anatomies(self) -> Mapping[str, Anatomy]:
        """The sites of each model by name; of one model under its own."""
        return self.anatomy.bases or {self.model: self.anatomy}

    @property
    def steps(self) -> tuple[Step, ...]:
        """What each clause does, in the order of the spec."""
        return Several(self.result.steps)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is odd but not wrong."""
        return Several(self.result.warnings)

    @property
    def allocations(self) -> Mapping[str, Allocation]:
        """What each `sensitive(...)` bought."""
        return self.result.allocations

    @property
    def orders(self) -> tuple[Order, ...]:
        """Where several clauses act on one value."""
        return self.result.orders

    @property
    def sizes(self) -> tuple[Stated, ...]:
        """Where it counts how many patches a token stands for."""
        return self.result.stream.holding

    @cached_property
    def features(self) -> dict[str, int]:
        """What `tune` keeps of an image where the spec asks for that: bytes, and MACs it spares.

        Raises:
            TuneError: VR550 or VR551 if it could not.
        """
        values = self.spec.tune.values
        if values.get("cache") != FEATURES:
            return {}
        cut = cut_of(self.result, self.result.root)
        width = example_of_one(self.base)[0].dtype.itemsize
        width = min(width, 2) if values.get("cache_dtype") == "bf16" else width
        return {"bytes": cut.bytes(width), "macs_spared": cut.spared(self.result.root)}

    @property
    def checkpointing(self) -> tuple[str, ...]:
        """Which modules are computed again in backward."""
        return checkpointed(self.base)

    def to_json(self) -> dict[str, Any]:
        """The plan as data."""
        return {
            "spec": self.spec.name,
            "model": self.model,
            "weights": self.weights,
            "clauses": [step.to_json() for step in self.steps],
            **self.spec.absent_json,
            "order": [order.to_json() for order in self.orders],
            **({"sizes": {s.use: s.value for s in self.sizes}} if self.sizes else {}),
            **self.measures.to_json(),
            "allocations": {k: a.to_json() for k, a in self.allocations.items()},
            **self.result.chosen,
            **({"aims": [aim.to_json() for aim in self.aims]} if self.aims else {}),
            "claims": [verdict.to_json() for verdict in self.claims],
            "warnings": list(self.warnings),
            **({"checkpointing": list(self.checkpointing)} if self.checkpointing else {}),
            **({"features": self.features} if self.features else {}),
        }

    def __str__(self) -> str:
        return plan_text(self)

    def __repr__(self) -> str:
        return brief(str(self))


def run(root: nn.Module) -> Propagation:
    """A captured model, run on meta for one image.

    Raises:
        RewriteError: VR405 if it does not run for one image.
    """
    try:
        return Propagation(on_meta(root), example_of_one(root))
    except BrokenError as error:
        told = needed(error, Tokens(0, None))
        raise RewriteError("VR405", f"the model does not run for one image: {told}") from error
