"""A rewrite carried out again with what was decided in training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from ..models.request import Request
from .compilation import Compilation
from .rewritten import Rewritten
from .weights import weighted


@torch.no_grad()
def decided(rewritten: Rewritten, pass_name: str, what: Mapping[str, Any]) -> Rewritten:
    """The same rewrite with what the procedure of a pass decided.

    Tensors are those of `rewritten` where they are as they were there, else new ones.

    Args:
        rewritten: the model as it was before.
        pass_name: whose decision it is.
        what: the decision as data, which is in the lock file from then on. Of a `drop ... by`
            clause `gone`, the roles of the sites that go, and `scores`, what they were chosen by,
            by role; the pass of any other finds it as `site.decided`.

    Raises:
        RewriteError: VR410 for a site that what follows cannot do without, VR401 if another clause
            stands there.
    """
    known = {k: a.to_json(entries=True) for k, a in rewritten.result.allocations.items()}
    before = rewritten.result.chosen.get("choices", {})
    request = Request(
        rewritten.spec, rewritten.model_name, rewritten.weights_request, rewritten.seed,
        rewritten.model_options,
    )  # fmt: skip
    made = {**known, **before, pass_name: dict(what)}
    compiled = Compilation.of(request, rewritten.base, allocations=made)
    result = weighted(compiled)
    given = rewritten.module.state_dict()
    for name, tensor in result.module.state_dict().items():
        old = given.get(name)
        if old is None or old.shape != tensor.shape or tensor.data_ptr() == old.data_ptr():
            continue  # it is new, or frozen, and shared
        tensor.copy_(old)
    return replace(result, original=rewritten.original, buildable=rewritten.buildable, trained=True)
