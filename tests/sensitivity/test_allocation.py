"""Allocations from the saved sensitivities of the authors' code, decision by decision."""

from __future__ import annotations

import json
from typing import Any

import pytest
import timm
import torch

import vitrewrite as vr
from tests import goldens
from vitrewrite.anatomy import analyse
from vitrewrite.sensitivity import Allocation, Rule, allocate, candidates
from vitrewrite.tracing import trace

CASE = goldens.case("spt-allocation")
CONFIGS: dict[str, Any] = json.loads(
    (goldens.FOLDER / "spt-allocation" / "allocations.json").read_text()
)
KINDS = {"structured": "structured", "full_vector": "vector", "mask": "entries"}


def found(config: dict[str, Any], budget: int) -> Allocation:
    root = trace(CASE.base())
    rank, kind = config["rank"], config["structured_type"]
    costs = {
        "lora": lambda out, inside: rank * (out + inside),
        "adapter": lambda out, _: 2 * rank * out + rank + out,
    }
    rule = Rule(
        cost=costs[kind] if config["alpha"] else None,
        alpha=config["alpha"] or 1.0,
        beta=config["beta"] or 1.0,
        vectors=config["structured_vector"],
        structured_only=config["structured_only"],
        scale=10_000,
        extra=48,
    )
    measured = {
        k.removeprefix("sens.batch4."): v
        for k, v in CASE.tensors.items()
        if k.startswith("sens.batch4.")
    }
    return allocate(candidates(root, analyse(root)), measured, budget, rule)


@pytest.mark.parametrize(
    ("config", "budget"), [(c, b) for c, about in CONFIGS.items() for b in about["budgets"]]
)
def test_decisions_are_those_of_the_authors(config: str, budget: str) -> None:
    expected = CONFIGS[config]["budgets"][budget]
    if expected is None or "decision" not in expected:  # the authors find none either
        with pytest.raises(vr.VitrewriteError, match="VR761"):
            found(CONFIGS[config]["config"], int(budget))
        return
    allocation = found(CONFIGS[config]["config"], int(budget))
    assert (allocation.tau, allocation.total) == (expected["tau"], expected["total_params"])
    decisions = {d.candidate.name: d for d in allocation.decisions}
    assert decisions.keys() == expected["decision"].keys()
    for name, (count, kind) in expected["decision"].items():
        decision = decisions[name]
        assert decision.count == count, name
        if kind in KINDS and (count or kind != "mask") and decision.kind != "nothing":
            assert decision.kind == KINDS[kind], name
        key = f"maskidx.{config}.{budget}.{name}"
        if key in CASE.tensors:
            assert torch.equal(decision.entries, CASE.tensors[key].long()), name


def test_candidates_of_vit_b() -> None:
    model = timm.create_model("vit_base_patch16_224")
    root = trace(model)
    listed = candidates(root, analyse(root))
    assert sum(c.is_matrix for c in listed) == 72
    assert sum(c.name.endswith("norm1.weight") for c in listed) == 12
    # 4 norm and 4 bias vectors a block, the fused bias as three, and the final norm
    assert sum(not c.is_matrix for c in listed) == 12 * (4 + 6) + 2
    assert {c.name for c in listed if c.null} == {f"blocks.{i}.attn.qkv.bias[k]" for i in range(12)}


def test_an_unreachable_budget_names_the_nearest() -> None:
    with pytest.raises(vr.VitrewriteError, match="VR761") as caught:
        found(CONFIGS["lora_a10"]["config"], 10)
    assert "nearest totals" in caught.value.render()
