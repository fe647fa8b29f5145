"""The `merge.tome` pass: the authors' numbers, mass, other inputs, lowering, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vitrewrite as vr
from tests import goldens
from vitrewrite.rewrite.rewritten import Rewritten

CASES = {
    "tome-r4-prop": "insert merge.tome(r=4) after blocks[*].attn\n",
    "tome-r4-noprop": "insert merge.tome(r=4, prop_attn=false) after blocks[*].attn\n",
    "tome-decreasing-prop": "insert merge.tome(r=4, inflection=-1) after blocks[*].attn\n",
    "tome-avgpool": "insert merge.tome(r=8, prop_attn=false) after blocks[*].attn\n",
    "tome-distilled": "insert merge.tome(r=7) after blocks[*].attn\n",
}


def merges(rewritten: Rewritten) -> list[Any]:
    """The modules that merge, from the first block on."""
    return [m for m in rewritten.module.modules() if hasattr(m, "match")]


@torch.no_grad()
def watched(rewritten: Rewritten, x: torch.Tensor) -> list[tuple[Any, ...]]:
    """What each merge is given and yields: x, k, perhaps sizes, then x and sizes."""
    seen: list[tuple[Any, ...]] = []
    handles = [
        merge.register_forward_hook(lambda _, given, made: seen.append((given, made)))
        for merge in merges(rewritten)
    ]
    rewritten.module.eval()(x)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    case = goldens.case(name)
    rewritten = vr.apply(CASES[name], case.base())
    x, module = case.tensors["input"], rewritten.module
    with torch.no_grad():
        case.close(rewritten.base(x), "output_base")
        case.close(module.eval()(x), "output")
        case.close(vr.lower(rewritten).module.eval()(x), "output")
    seen = watched(rewritten, x)
    assert len(seen) == sum(r > 0 for r in case.about["hyper"]["r_per_block"])
    count = seen[0][0][0].shape[1]
    source = torch.eye(count).expand(len(x), -1, -1)
    for i, (merge, (given, _)) in enumerate(zip(merges(rewritten), seen, strict=True)):
        case.close(given[1].mean(1), f"metric.{i}")
        source = merge.sums(source, *merge.match(given[1], merge.r))
    assert torch.equal(seen[-1][1][1][..., None], case.tensors["size"])
    assert torch.equal(source, case.tensors["source"])
    assert torch.equal(source.argmax(1), case.tensors["group_of_token"])


@pytest.mark.parametrize("name", ["tome-avgpool", "tome-distilled"])
def test_golden_gradients(name: str) -> None:
    case = goldens.case(name)
    module = vr.apply(CASES[name], case.base()).module.eval()
    keys = [k.removeprefix("grad.base.") for k in case.tensors if k.startswith("grad.base.")]
    parameters = [module.get_parameter(k).requires_grad_(True) for k in keys]
    loss = (module(case.tensors["input"]) * case.tensors["probe"]).sum()
    found = torch.autograd.grad(loss, parameters)
    case.gradients_close({f"base.{k}": g for k, g in zip(keys, found, strict=True)})
