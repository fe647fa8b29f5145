"""Allocations from the saved sensitivities of the authors' code, decision by decision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import vitrewrite as vr
from tests import goldens
from vitrewrite.anatomy import analyse
from vitrewrite.profiling.gradients import squared_gradients
from vitrewrite.sensitivity import Allocation, AllocationRule, allocate, candidates
from vitrewrite.sensitivity.profile import Profile
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
    rule = AllocationRule(
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


@pytest.mark.parametrize(("rule", "batch"), [("persample", 12), ("batch4", 4)])
def test_measured_sensitivities_are_those_of_the_authors(rule: str, batch: int) -> None:
    x, y = CASE.tensors["input"], CASE.tensors["labels"].long()
    names = [k.removeprefix(f"sens.{rule}.") for k in CASE.tensors if k.startswith(f"sens.{rule}.")]
    names = [n for n in names if n.startswith(("blocks", "norm"))]
    found = squared_gradients(
        CASE.base(),
        zip(x.split(batch), y.split(batch), strict=True),
        per_sample=rule == "persample",
        names=names,
    )
    for name in names:
        expected = CASE.tensors[f"sens.{rule}.{name}"]
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-7)


def test_an_allocation_survives_a_file() -> None:
    root = trace(CASE.base())
    allocation = found(CONFIGS["lora_a10"]["config"], 4000)
    listed = candidates(root, analyse(root))
    stored = json.loads(json.dumps(allocation.to_json(entries=True)))
    again = Allocation.from_json(stored, listed)
    assert again.to_json(entries=True) == allocation.to_json(entries=True)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda t: {k: v for k, v in t.items() if "fc1.weight" not in k}, "VR760"),
        (lambda t: {k: v[:-1] for k, v in t.items()}, "VR760"),
        (lambda t: {k: v * float("nan") for k, v in t.items()}, "VR762"),
    ],
)
def test_bad_profiles(change: Any, code: str) -> None:
    tensors = {k.replace("sens.batch4", "sensitivity"): v for k, v in CASE.tensors.items()}
    root = trace(CASE.base())
    with pytest.raises(vr.VitrewriteError, match=code):
        Profile(change(tensors)).sensitivities(candidates(root, analyse(root)))


def test_a_profile_is_a_file(tmp_path: Path) -> None:
    profile = Profile({"sensitivity.a": torch.ones(2, 3)}, {"samples": 4})
    profile.save(tmp_path / "p.safetensors")
    again = Profile.load(tmp_path / "p.safetensors")
    assert again.about == profile.about
    assert torch.equal(again.tensors["sensitivity.a"], torch.ones(2, 3))
    for broken in (tmp_path / "none", tmp_path / "text"):
        (tmp_path / "text").write_text("no tensors")
        with pytest.raises(vr.VitrewriteError, match="VR763"):
            Profile.load(broken)


@pytest.mark.parametrize(("code", "batches"), [("VR765", []), ("VR762", None)])
def test_bad_measurements(code: str, batches: list[Any] | None) -> None:
    x, y = CASE.tensors["input"], CASE.tensors["labels"].long()
    with pytest.raises(vr.VitrewriteError, match=code):
        squared_gradients(
            CASE.base(),
            [(x * float("inf"), y)] if batches is None else batches,
            per_sample=False,
            names=["norm.weight"],
        )


def test_measuring_leaves_the_model_as_it_was() -> None:
    model = CASE.base()
    model.requires_grad_(False)  # a frozen model can be measured too
    model.norm.bias.requires_grad_()
    model.norm.bias.grad = torch.ones(model.norm.bias.shape)
    x, y = CASE.tensors["input"], CASE.tensors["labels"].long()
    names = ["norm.weight", "blocks.0.mlp.fc1.weight"]
    found = squared_gradients(model, [(x, y)], per_sample=False, names=names)
    assert list(found) == names
    assert all(bool(v.any()) for v in found.values())
    flags = {n for n, p in model.named_parameters() if p.requires_grad}
    assert flags == {"norm.bias"}
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {"norm.bias"}
    assert bool(model.norm.bias.grad.eq(1).all())


def test_a_parameter_that_plays_no_part() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Identity())
    model.register_parameter("unused", torch.nn.Parameter(torch.zeros(2)))
    with pytest.raises(vr.VitrewriteError, match="VR764"):
        squared_gradients(
            model, [(torch.ones(1, 2), torch.zeros(1).long())], per_sample=False, names=["unused"]
        )
