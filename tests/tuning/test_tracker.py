"""TensorBoard, written by accelerate's tracker beside the metrics."""

from __future__ import annotations

import json
from pathlib import Path

import accelerate.utils
import pytest

import vitrewrite as vr
from vitrewrite.errors import TuneError
from vitrewrite.tuning import Settings, tune

SPEC = "model tiny.py:build(num_classes=3)\ntrain head\n"


def test_the_numbers_of_the_metrics_are_shown(here: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = Settings(steps=2, batch=16, log_every=1, tracker="tensorboard")
    tune(vr.apply(SPEC), "digits:0-2", settings, out="out")
    tune(vr.apply(SPEC), "digits:0-2", settings.changed({"steps": 2}), out="out", resume=True)
    events = EventAccumulator("out/tensorboard").Reload()
    lines = [json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    found = [(e.step, e.value) for e in events.Scalars("step/loss")]
    assert found == [(s["total"], pytest.approx(s["loss"])) for s in steps]
    (last,) = (line for line in lines if line["event"] == "evaluation")
    (shown,) = events.Scalars("evaluation/accuracy")
    assert shown.value == pytest.approx(last["accuracy"])
    assert "step/rates/weights" in events.Tags()["scalars"]
    assert vr.load(vr.apply(SPEC), "out/delta.safetensors").trained


def test_a_missing_library_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerate.utils, "is_tensorboard_available", lambda: False)
    with pytest.raises(TuneError, match="needs tensorboard") as caught:
        tune(vr.apply(SPEC), "digits:0-2", Settings(tracker="tensorboard"), out="out")
    assert caught.value.code == "VR863"
    assert not Path("out").exists()
