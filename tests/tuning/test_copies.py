"""The moving average against timm's own, the best evaluation, and when a run stops early."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm.utils
import torch
from safetensors.torch import load_file

import vitrewrite as vr
from vitrewrite import catalog
from vitrewrite.tuning import Procedure, Run, Settings, tune

SPEC = """model tiny.py:build(num_classes=3)
insert lora(rank=2, dropout=0) at blocks[*].attn.q
train head
"""
QUICK: dict[str, Any] = {"batch": 64, "lr": 0.02, "checkpoint_every": 6, "keep": 99}


def evaluations(folder: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["event"] == "evaluation"]


class Beside(Procedure):
    """timm's own average of the whole model, beside the one of the run."""

    def __init__(self, **how: Any) -> None:
        self.how, self.timms = how, None

    def before_step(self, run: Run) -> None:
        library: Any = timm.utils
        self.timms = self.timms or library.ModelEmaV3(run.module, **self.how)

    def after_step(self, run: Run) -> None:
        assert self.timms is not None
        self.timms.update(run.module, run.step)


@pytest.mark.parametrize("warmup", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_average_is_timms_and_is_what_is_written(
    warmup: bool, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = Beside(decay=0.8, use_warmup=warmup)
    monkeypatch.setattr(catalog.load("lora"), "procedure", lambda _: beside)
    settings = Settings(steps=6, ema=0.8, ema_warmup=warmup, **QUICK)
    result = tune(vr.apply(SPEC), "digits:0-2", settings, out="out")
    assert beside.timms is not None
    expected = beside.timms.module.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in result.module.state_dict().items())
    kept = load_file("out/checkpoints/00-00000006/tensors.safetensors")
    live, average = (kept[f"/{kind}/head.weight"] for kind in ("model", "copies/average"))
    assert not torch.equal(live, average)
    assert torch.equal(average, result.module.head.weight)


def test_an_evaluation_measures_the_average_and_leaves_training_alone(here: Path) -> None:
    for name, more in (("plain", {}), ("average", {"ema": 0.9})):
        tune(vr.apply(SPEC), "digits:0-2", Settings(epochs=2, **QUICK, **more), out=name)
    last = "checkpoints/00-00000012/tensors.safetensors"
    plain, average = load_file(f"plain/{last}"), load_file(f"average/{last}")
    assert all(torch.equal(value, average[key]) for key, value in plain.items())
    assert evaluations("plain")[0]["loss"] != evaluations("average")[0]["loss"]


class Spoil(Procedure):
    """Makes the model worse in the end."""

    def after_step(self, run: Run) -> None:
        if run.step > 12:
            run.module.get_parameter("head.weight").detach().zero_()


def test_the_best_evaluation_is_what_is_written(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog.load("lora"), "procedure", lambda _: Spoil())
    settings = {"epochs": 4, **QUICK}
    tune(vr.apply(SPEC), "digits:0-2", Settings(**settings), out="last")
    found = evaluations("last")
    best = max(found, key=lambda each: each["accuracy"])
    assert best["step"] <= 12
    chosen = tune(vr.apply(SPEC), "digits:0-2", Settings(**settings, report="best"), out="best")
    assert chosen.training["accuracy"] == best["accuracy"]
    assert chosen.training["reported"] == {"evaluation": "best", "step": best["step"]}
    then = load_file(f"last/checkpoints/00-{best['step']:08}/tensors.safetensors")
    assert all(torch.equal(v, then[f"/model/{k}"]) for k, v in _trained(chosen).items())


def _trained(rewritten: Any) -> dict[str, torch.Tensor]:
    return {k: p.detach() for k, p in rewritten.module.named_parameters() if p.requires_grad}


def test_a_run_stops_where_evaluations_get_no_better_and_can_be_finished_again(here: Path) -> None:
    settings = Settings(epochs=9, stop_after=2, **{**QUICK, "lr": 0.0, "checkpoint_every": 100})
    stopped = tune(vr.apply(SPEC), "digits:0-2", settings, out="out")
    assert [each["step"] for each in evaluations("out")] == [6, 12, 18]
    assert stopped.training["steps"] == 18
    assert sorted(p.name for p in Path("out/checkpoints").iterdir())[-1] == "00-00000018"
    again = tune(vr.apply(SPEC), "digits:0-2", settings, out="out", resume=True)
    assert again.training["steps"] == 18
    assert len(evaluations("out")) == 3
