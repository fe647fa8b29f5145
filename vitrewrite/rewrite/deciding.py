"""A rewrite carried out again with what was chosen in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from ..models.request import Request
from .compilation import Compilation
from .rewritten import Rewritten
from .weights import weighted


@torch.no_grad()
def decided(
    rewritten: Rewritten, pass_name: str, gone: Sequence[str], scores: Mapping[str, float]
) -> Rewritten:
    """The same rewrite with the sites gone that a pass chose; tensors are those of `rewritten`.

    Args:
        rewritten: the model, with all sites of the clause.
        pass_name: whose `drop ... by` clause it is about.
        gone: the roles of the sites that go.
        scores: what they were chosen by, by role.

    Raises:
        RewriteError: VR410 for a site that what follows cannot do without, VR401 if another clause
            stands there.
    """
    known = {k: a.to_json(entries=True) for k, a in rewritten.result.allocations.items()}
    request = Request(
        rewritten.spec, rewritten.model_name, rewritten.weights_request, rewritten.seed,
        rewritten.model_options,
    )  # fmt: skip
    made = {pass_name: {"gone": list(gone), "scores": dict(scores)}}
    compiled = Compilation.of(request, rewritten.base, allocations={**known, **made})
    result = weighted(compiled)
    given = rewritten.module.state_dict()
    for name, tensor in result.module.state_dict().items():
        if tensor.data_ptr() != given[name].data_ptr():  # frozen ones are shared
            tensor.copy_(given[name])
    return replace(result, original=rewritten.original, buildable=rewritten.buildable, trained=True)
