"""Planning: what it says, and that it touches no weights."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

import vitrewrite as vr
from tests.test_capture import tiny
from vitrewrite.editing.measure import Propagation

PEAK = """
import resource, vitrewrite as vr
vr.plan("lora_qv", "vit_tiny_patch16_224")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
plan = vr.plan("lora_qv", "vit_giant_patch14_224")
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(plan.measures.params.total, (after - before) // 1024)
"""


def test_a_plan_of_a_billion_parameters_allocates_no_weight() -> None:
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    total, megabytes = map(int, done.stdout.split())
    assert total > 1_000_000_000
    assert megabytes < 200


@pytest.mark.parametrize("clauses", [1, 3])
def test_a_model_is_run_before_behind_and_lowered_however_many_clauses_there_are(
    clauses: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    start = Propagation.__init__

    def counting(self: Propagation, *args: Any, **more: Any) -> None:
        made.append(self)
        start(self, *args, **more)

    monkeypatch.setattr(Propagation, "__init__", counting)
    places = ("attn.{q, v}", "attn.proj", "mlp.fc1")[:clauses]
    vr.plan("".join(f"insert lora(rank=2) at blocks[*].{place}\n" for place in places), tiny())
    assert len(made) == 3


def test_a_plan_names_clauses_counts_and_claims() -> None:
    spec = (
        "insert lora(rank=2) at blocks[0].attn.{q, v}\ntrain head\nfreeze head\n"
        "require trainable == 128\nrequire identity at init\nrequire tokens at blocks[1] == 17\n"
    )
    plan = vr.plan(spec, tiny())
    data = json.loads(json.dumps(plan.to_json()))
    assert [c["change"] for c in data["clauses"]] == ["+", "~", "~"]
    assert data["clauses"][0]["sites"] == ["blocks[0].attn.q", "blocks[0].attn.v"]
    assert data["clauses"][0]["parameters"] == data["params"]["trainable"] == 128
    assert data["tokens"] == [17, 17, 17]
    assert [c["holds"] for c in data["claims"]] == [True, None, True]
    assert "insert lora(rank=2) at blocks[0].attn.{q, v}" in str(plan)


def test_what_a_condition_keeps_out_is_told_and_does_nothing() -> None:
    text = (
        "param rank: int = 2\ninsert lora(rank=rank) at blocks[*].attn.q if rank > 0\ntrain head\n"
    )
    plan = vr.plan(vr.parse(text, rank=0), tiny())
    line = "not there  line 2: insert lora(rank=rank) at blocks[*].attn.q if rank > 0 (rank = 0)"
    assert line in str(plan).splitlines()
    assert [c["clause"] for c in plan.to_json()["clauses"]] == ["train head"]
    assert plan.to_json()["not_there"][0]["values"] == {"rank": 0}
    assert plan.measures == vr.plan("train head\n", tiny()).measures
    assert vr.apply(vr.parse(text, rank=0), tiny()).report["not_there"][0]["line"] == 2
    assert "not_there" not in vr.plan(text, tiny()).to_json()


def test_plan_and_apply_count_the_same() -> None:
    spec = "insert lora(rank=3) at every linear in blocks\ntrain norm\n"
    model = tiny()
    planned, applied = vr.plan(spec, model).to_json(), vr.apply(spec, model).report
    for key in ("params", "macs", "macs_lowered", "flops", "tokens", "clauses"):
        assert planned[key] == applied[key]


def test_what_is_odd_but_not_wrong_is_a_warning() -> None:
    plan = vr.plan("param k: int = 3\ninsert lora(rank=12) at blocks[*].attn.q\n", tiny())
    assert len(plan.warnings) == 2
    assert "never used" in plan.warnings[0]
    assert "more than half" in plan.warnings[1]


def test_a_spec_without_a_model_asks_for_one() -> None:
    with pytest.raises(vr.VitrewriteError, match="VR312"):
        vr.plan("train head\n")


def test_the_command_lines_model_overrides_the_specs() -> None:
    assert (
        vr.plan(vr.parse("lora_qv", model="vit_tiny_patch16_224")).model == "vit_tiny_patch16_224"
    )
    assert vr.plan("lora_qv", "vit_tiny_patch16_224").model == "vit_tiny_patch16_224"


def test_every_bias_is_a_selector() -> None:
    model = tiny()
    spec = (
        "train every bias in blocks\ntrain every bias in blocks[0] - every bias in blocks[0].attn\n"
    )
    plan = vr.plan(spec, model)
    biases = [n for n, _ in model.blocks.named_parameters() if n.endswith("bias")]
    assert len(plan.steps[0].sites) == len(biases) == 12
    outside = ("norm1", "norm2", "mlp.fc1", "mlp.fc2")
    assert plan.steps[1].sites == tuple(f"blocks.0.{n}.bias" for n in outside)
