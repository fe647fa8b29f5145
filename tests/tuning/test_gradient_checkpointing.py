"""Blocks that are computed again in backward: less is kept, and what is trained is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import vitrewrite as vr
from vitrewrite.errors import TuneError
from vitrewrite.tracing.unit import checkpointed
from vitrewrite.tuning import Settings, tune
from vitrewrite.tuning.loop import TrainingLoop

SPEC = """model tiny.py:build(num_classes=3)
insert lora(rank=2, dropout=0.1) at blocks[*].attn.q
train head + blocks[0]
tune { drop_path = 0.3 }
"""


def test_a_run_is_the_same_and_the_written_model_has_no_checkpoints(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[str, ...]] = []
    steps = TrainingLoop.steps

    def seen(loop: TrainingLoop) -> None:
        found.append(checkpointed(loop.run.module))
        steps(loop)

    monkeypatch.setattr(TrainingLoop, "steps", seen)
    deltas = []
    for again in (False, True):
        settings = Settings(steps=3, batch=8, drop_path=0.3, checkpoint_gradients=again)
        result = tune(vr.apply(SPEC), "digits:0-2", settings, out=f"out{again}", device="cpu")
        assert "checkpointing" not in result.report
        deltas.append(result.delta())
    assert found == [(), ("blocks.0", "blocks.1")]
    assert all(torch.equal(value, deltas[1][name]) for name, value in deltas[0].items())
    assert Path("outTrue/model.py").read_text() == Path("outFalse/model.py").read_text()


def test_a_model_without_blocks(here: Path) -> None:
    plain: Any = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    rewritten = vr.apply('train module("1")\n', plain, example=torch.zeros(1, 1, 8, 8))
    with pytest.raises(TuneError, match="finds no blocks") as caught:
        tune(rewritten, "digits:0-2", Settings(steps=1, checkpoint_gradients=True), out="out")
    assert caught.value.code == "VR862"
