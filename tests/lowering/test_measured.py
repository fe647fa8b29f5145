"""What lowering says of its errors and names, against models that are run here."""

from __future__ import annotations

import functools
import json
import math
from typing import Any

import pytest
import torch
from torch import nn

import vitrewrite as vr
from vitrewrite.rewrite.rewritten import Rewritten
from vitrewrite.verification import lowered as measuring
from vitrewrite.verification.numeric import relative, sample

from .models import ADAPTER, ANY, DEEP, LORA, MASKED, MERGE, SPARSE, SPECS, applied, fill, vit

# Relative errors of an exact lowering in these models: rounding, and not much of it.
ALLOWED = {"float32": 2e-6, "bfloat16": 6e-2, "float16": 6e-3}


@functools.cache
def lowered_of(name: str) -> Rewritten:
    """To be left as it is."""
    return vr.lower(applied(*SPECS[name]))


@pytest.fixture
def together() -> Rewritten:
    return lowered_of("all")


@pytest.mark.parametrize("name", SPECS)
def test_every_error_is_rounding(name: str) -> None:
    lowered = lowered_of(name)
    found = json.loads(json.dumps(lowered.report, allow_nan=False))["lowering"]
    assert found["error"].keys() == ALLOWED.keys()
    assert found["unmeasured"] == {}
    errors = [found["error"], *(e["error"] for e in (*found["clauses"], *found["folds"]))]
    for error in errors:
        assert all(e["relative"] <= ALLOWED[dtype] for dtype, e in error.items())
    for dtype, error in found["error"].items():
        assert 0 < error["rounding"] < ALLOWED[dtype]
    assert len(found["clauses"]) == len(SPECS[name])


def test_the_error_of_the_model_is_that_of_running_both(together: Rewritten) -> None:
    assert together.unlowered is not None
    inputs = sample(together, batch=1)
    expected = relative(together.unlowered.module, together.module, inputs)
    found = together.report["lowering"]["error"]["float32"]
    assert found["relative"] == pytest.approx(expected)
    assert found["max"] > 0


def test_clauses_are_lowered_one_after_the_other(together: Rewritten) -> None:
    found = together.report["lowering"]["clauses"]
    assert [c["pass"] for c in found] == [
        "merge.bdm", "prompt", "kv_prompt", "lora", "sparse", "adapter",
    ]  # fmt: skip
    modules = {c["pass"]: (c["modules"]["before"], c["modules"]["after"]) for c in found}
    assert modules["lora"] == (3, 0)
    assert modules["sparse"][0] > modules["sparse"][1] == 0
    assert modules["adapter"] == modules["kv_prompt"] == (3, 3)
    assert modules["merge.bdm"] == (1, 1)
    assert modules["prompt"] == (4, 3)  # the masks went into the constants
    errors = {c["pass"]: c["error"] for c in found}
    assert errors["kv_prompt"] == {}
    assert all(found["max"] == 0 for found in errors["adapter"].values())  # none of it is zero
    assert all(errors[p].keys() == ALLOWED.keys() for p in ("lora", "sparse", "prompt"))
    assert all(errors[p]["float32"]["max"] > 0 for p in ("lora", "sparse", "prompt"))


def test_a_wrong_fold_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures are of what is there, clause by clause and layer by layer."""
    from vitrewrite.passes.lora import Lora

    lower = Lora.lower

    def broken(self: Lora, linear: Any, branch: Any) -> bool:
        right = branch.scale
        branch.scale = 1.1 * right if linear.path.startswith("blocks.1.") else right
        done = lower(self, linear, branch)
        branch.scale = right
        return done

    monkeypatch.setattr(Lora, "lower", broken)
    found = vr.lower(applied(LORA, SPARSE)).report["lowering"]
    assert found["error"]["float32"]["relative"] > 1e-3
    errors = {c["pass"]: c["error"]["float32"]["relative"] for c in found["clauses"]}
    assert errors["lora"] > 1e-3 > 1e-6 > errors["sparse"]
    worst = max(found["folds"], key=lambda f: f["error"]["float32"]["relative"])
    assert worst["weights"] == ["blocks.1.attn.qkv.weight"]
    assert worst["error"]["float32"]["relative"] > 1e-2
    others = [f["error"]["float32"]["relative"] for f in found["folds"] if f is not worst]
    assert max(others) < 1e-6


def test_large_models_are_measured_once_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "CLAUSE_BY_CLAUSE", 0)
    found = vr.lower(applied(LORA, DEEP)).report["lowering"]
    assert [c["error"] for c in found["clauses"]] == [{}, {}]
    assert found["error"]["float32"]["max"] > 0
    assert len(found["folds"]) == 3


def test_a_branch_is_folded_whatever_an_adapter_does() -> None:
    """No adapter comes between a matrix and its LoRA, in either order of the clauses."""
    for clauses in ((ANY, ADAPTER), (ADAPTER, ANY)):
        lowered = vr.lower(applied(*clauses))
        found = lowered.report["lowering"]
        assert found["error"]["float32"]["relative"] < ALLOWED["float32"]
        (lora,) = (c for c in found["clauses"] if c["pass"] == "lora")
        assert lora["modules"]["after"] == 0
        vr.verify(lowered, graphs=False)


def test_rows_of_a_fused_matrix_are_folded() -> None:
    adapter = "insert adapter(hidden=2) at blocks[*].attn.q"
    for other in ("v", "{q, v}"):
        lora = f"insert lora(rank=2) at blocks[*].attn.{other}"
        lowered = vr.lower(applied(lora, adapter))
        found = lowered.report["lowering"]
        assert found["clauses"][1]["modules"] == {"before": 3, "after": 0}
        assert found["error"]["float32"]["relative"] < ALLOWED["float32"]


def test_a_layer_that_runs_twice_keeps_its_branch() -> None:
    """Folded in, the update would be in the other call too; tied weights come apart instead."""
    model = vit()
    model.blocks[2].mlp.fc1 = model.blocks[0].mlp.fc1
    model.blocks[2].mlp.fc2.weight = model.blocks[0].mlp.fc2.weight
    clause = "insert lora(rank=2) at blocks[0].mlp.{fc1, fc2}\n"
    lowered = vr.lower(fill(vr.apply(clause, model)))
    found = lowered.report["lowering"]
    assert found["clauses"][0]["modules"] == {"before": 2, "after": 1}
    assert found["error"]["float32"]["relative"] < ALLOWED["float32"]
    assert found["changed"] == ["blocks.0.mlp.fc2.weight"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_in_another_dtype(dtype: torch.dtype) -> None:
    """The sum is made in float32 or better and rounded once; the report says what that costs."""
    rewritten = applied(LORA)
    rewritten.module.to(dtype)
    lowered = vr.lower(rewritten)
    name = "blocks.0.attn.qkv.weight"
    weight = rewritten.module.get_parameter(name).detach().double().clone()
    delta = {k: v.double() for k, v in rewritten.delta().items()}
    for start, row in ((0, "q"), (32, "v")):
        up, down = (delta[f"blocks.0.attn.{row}.lora.{t}"] for t in ("up", "down"))
        weight[start : start + 16] += up @ down
    folded = lowered.module.get_parameter(name)
    assert folded.dtype == dtype
    bound = torch.finfo(dtype).eps * weight.abs().max()
    assert float((folded.double() - weight).abs().max()) <= bound
    found = lowered.report["lowering"]["error"]
    assert str(dtype).removeprefix("torch.") in found
    if dtype == torch.float64:
        assert found["float64"]["relative"] < 1e-13
    else:  # in float32 arithmetic what is left is the rounding of the weights
        assert 1e-5 < found["float32"]["relative"] < ALLOWED["bfloat16"]


def test_outputs_that_overflow_are_not_measured() -> None:
    rewritten = applied(LORA)
    with torch.no_grad():
        rewritten.module.get_parameter("head.weight").mul_(1e5)
    found = vr.lower(rewritten).report["lowering"]
    assert found["error"].keys() == {"float32", "bfloat16"}
    assert "not finite" in found["unmeasured"]["float16"]


def test_a_model_without_weights() -> None:
    rewritten = vr.apply(f"{LORA}\n", vit().to("meta"))
    report = vr.lower(rewritten).report["lowering"]
    assert report["error"] == {}
    assert report["unmeasured"].keys() == ALLOWED.keys()
    assert len(report["folds"]) == 3


def test_a_dtype_that_an_operation_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    cast = measuring._cast

    def refusing(module: nn.Module, dtype: torch.dtype) -> nn.Module:
        if dtype == torch.float16:
            raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'\nand more")
        return cast(module, dtype)

    monkeypatch.setattr(measuring, "_cast", refusing)
    found = vr.lower(applied(SPECS["deep prompts"][0])).report["lowering"]
    assert found["unmeasured"] == {"float16": "\"addmm_impl_cpu_\" not implemented for 'Half'"}


# -- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPECS)
def test_the_key_map_accounts_for_every_name(name: str) -> None:
    lowered = lowered_of(name)
    assert lowered.unlowered is not None
    report = lowered.report
    old, new = lowered.unlowered.module.state_dict(), lowered.module.state_dict()
    keys, changed = report["keys"], set(report["lowering"]["changed"])
    assert keys.keys() == old.keys() - new.keys()
    heirs = {n for entry in keys.values() for n in entry["to"]}
    assert new.keys() - old.keys() <= heirs <= (new.keys() - old.keys()) | changed
    for tensor in old.keys() & new.keys():
        assert torch.equal(old[tensor], new[tensor]) == (tensor not in changed)
    assert {entry["clause"] for entry in keys.values()} <= {c["clause"] for c in report["clauses"]}


def test_the_key_map() -> None:
    keys = vr.lower(applied(MASKED, LORA)).report["keys"]
    assert keys["blocks.1.attn.qkv_lora.down"]["to"] == ["blocks.1.attn.qkv.weight"]
    assert keys["blocks.1.prompt.prompt"] == {
        "to": ["blocks.1.attn.prompt.k", "blocks.1.attn.prompt.v"],
        "clause": "prepend prompt(count=3, masks=true, segments=4) to blocks[*]",
    }
    constants = [f"blocks.{i}.attn.prompt.{t}" for i in range(3) for t in "kv"]
    assert keys["prompt_masks.token_mask"]["to"] == constants
    for clause in (MERGE, ADAPTER, SPECS["shallow prompts"][0]):  # nothing is renamed
        assert vr.lower(applied(clause)).report["keys"] == {}


def test_pruned_prompts_have_a_bias_among_their_heirs() -> None:
    rewritten = applied(MASKED)
    rewritten.delta()["prompt.token_mask"].copy_(torch.tensor([1.0, 0.0, 0.0]))
    lowered = vr.lower(rewritten)
    heirs = lowered.report["keys"]["blocks.2.prompt.prompt"]["to"]
    assert heirs == [f"blocks.2.attn.prompt.{t}" for t in ("bias", "k", "v")]
    bias = lowered.module.get_buffer("blocks.2.attn.prompt.bias")
    assert bias.tolist() == pytest.approx([0, math.log(2)])
    assert lowered.report["lowering"]["error"]["float32"]["relative"] < ALLOWED["float32"]


def test_the_report_of_a_model_that_is_not_lowered_has_neither() -> None:
    report = fill(vr.apply(f"{LORA}\n", vit())).report
    assert not {"lowering", "keys"} & report.keys()
