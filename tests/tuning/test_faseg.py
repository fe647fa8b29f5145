"""FASeg tunes: positional queries and new layers, with the loss on all fourteen predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import vitrewrite as vr
from tests.zoo.subject import tensors
from vitrewrite.data import Preprocessing, batches, open_data
from vitrewrite.profiling.run import measure
from vitrewrite.rewrite.rewritten import Rewritten
from vitrewrite.tasks import task_for
from vitrewrite.tuning import Settings, tune

from .scenes import CONFIG, scenes

pytest.importorskip("transformers")
pytestmark = pytest.mark.xdist_group("faseg")

FASEG = """model hf:tiny(output_auxiliary_logits=true)
add dfpq() to decoder
add hrca(omega=2) to decoder
"""
SENSITIVE = "sensitive(budget=4K, scale=10K, samples=4)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of nine layers, and 16 and 6 scenes."""
    made = tmp_path_factory.mktemp("faseg")
    (made / "tiny").mkdir()
    (made / "tiny/config.json").write_text(json.dumps({**CONFIG, "decoder_layers": 10}))
    scenes(made / "data", training=16, validation=6)
    return made


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.mark.slow
def test_it_learns_and_its_delta_is_all_of_it(tmp_path: Path) -> None:
    spec = FASEG + "train every parameter\n"
    made = vr.apply(spec)
    data = open_data("data", Preprocessing.of(made.base))
    task = task_for(data, made.module, made.result.anatomy)
    images, labels = next(batches(data.val, 6))
    with torch.no_grad():
        base = task.results(task.tally(made.base(images), labels))
    output = made.module.eval()(images)  # in training mode, statistics of batch norms would move
    assert len(output["auxiliary_logits"]) == 13
    task.loss(output, labels, seed=0).backward()
    missing = [n for n, p in made.module.named_parameters() if p.grad is None]
    assert missing == []
    settings = Settings(steps=40, batch=4, lr=3e-3, log_every=1)
    tune(made, "data", settings, out=tmp_path / "out")
    lines = [json.loads(t) for t in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["event"] == "step"]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    after = [line for line in lines if line["event"] == "evaluation"][-1]
    assert after["mIoU"] > base["mIoU"] + 0.1
    vr.save(made, tmp_path / "delta.safetensors")
    again = vr.apply(spec, seed=1)
    vr.load(again, tmp_path / "delta.safetensors")
    with torch.no_grad():
        first, second = (tensors(m.module.eval()(images)) for m in (made, again))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.slow
def test_a_budget_is_spent_on_what_was_measured(tmp_path: Path) -> None:
    """Layers that `hrca` adds were not there to be measured: they are trained as a whole."""
    clauses = ("insert lora(rank=2, convention=spt) at", "insert sparse() at", "train optional")
    spec = FASEG + "".join(f"{clause} {SENSITIVE}\n" for clause in clauses)
    profile = measure(vr.parse(spec), data="data")
    made = vr.apply(spec, profile=profile)
    units = {layer.role: layer.unit or "" for layer in _decoder(made).layers}
    added = {role for role, unit in units.items() if "hrca_layers" in unit}
    assert len(added) == 4
    lora, sparse, trained = (step.sites for step in made.result.steps[2:])
    assert any(role.startswith("decoder.layers") for role in lora)
    assert not any(role.startswith(f"{new}.") for role in lora for new in added)
    assert not any("hrca" in role for role in (*sparse, *trained))
    parameters = made.module.named_parameters()
    assert all(p.requires_grad for n, p in parameters if "hrca_layers" in n)
    planned = vr.plan(spec, profile=profile).allocations
    assert [a.to_json() for a in planned.values()] == [
        a.to_json() for a in made.result.allocations.values()
    ]
    tune(made, "data", Settings(steps=2, batch=4, log_every=1), out=tmp_path / "out")


def _decoder(made: Rewritten) -> Any:
    return made.result.anatomy.decoder
