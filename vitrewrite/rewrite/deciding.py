"""A rewrite carried out again with what was chosen in training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from ..models.request import Request
from .choosing import BlockChoice, FoundOptions
from .compilation import Compilation
from .rewritten import Rewritten
from .weights import weighted


def decided(
    rewritten: Rewritten, choices: Mapping[str, BlockChoice | FoundOptions], *, anew: bool = False
) -> Rewritten:
    """The same rewrite with what was chosen for its clauses.

    Args:
        rewritten: the model.
        choices: by name of a pass which sites go by its `drop ... by` clause, or the options of
            its clauses by site.
        anew: whether it starts from the base again, and not from the tensors of `rewritten`.

    Raises:
        RewriteError: VR410 for a site that what follows cannot do without, VR401 if another clause
            stands there.
    """
    result = weighted(recompiled(rewritten, choices))
    if not anew:
        _copy(rewritten, result)
    return replace(
        result, original=rewritten.original, buildable=rewritten.buildable, trained=not anew
    )


def recompiled(
    rewritten: Rewritten, choices: Mapping[str, BlockChoice | FoundOptions]
) -> Compilation:
    """What the spec changes, with what was chosen: no weight is allocated."""
    made = {name: choice.to_json() for name, choice in choices.items()}
    request = Request(
        rewritten.spec,
        rewritten.model_name,
        rewritten.weights_request,
        rewritten.seed,
        rewritten.model_options,
    )
    known = {**rewritten.result.known, **made}
    return Compilation.of(request, rewritten.base, allocations=known)


@torch.no_grad()
def _copy(rewritten: Rewritten, result: Rewritten) -> None:
    """Gives a model the tensors of another one that has all of them."""
    given = rewritten.module.state_dict()
    for name, tensor in result.module.state_dict().items():
        if tensor.data_ptr() != given[name].data_ptr():  # frozen ones are shared
            tensor.copy_(given[name])
