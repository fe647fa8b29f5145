"""All settings of recipes: an interrupted run ends bit-identical, and what is wrong is told."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import vitrewrite as vr
from vitrewrite.catalog.needs import holds
from vitrewrite.catalog.signatures import OptionInfo
from vitrewrite.errors import ErrorList, VitrewriteError
from vitrewrite.language.settings import FREE, OF_STITCHES, Settings, options
from vitrewrite.tuning import tune
from vitrewrite.tuning.loop import TrainingLoop

from .test_resume import same_tensors, without_times

SPEC = """model tiny.py:build(num_classes=3)
insert lora(rank=2) at blocks[*].attn.{q, v}
train head + blocks[0].mlp + norm
"""
FACTORS = "tune { drop_path = 0.2, lr(blocks[0]) = 0.3, weight_decay(head) = 0 }\n"
MIXED: dict[str, Any] = {
    "optimiser": "lamb", "schedule": "plateau", "patience": 0, "decay_rate": 0.5, "min_lr": 1e-4,
    "mixup": 0.8, "cutmix": 1.0, "mix_prob": 0.9, "mix_switch": 0.4, "mix_mode": "elem",
    "mix_off_epoch": 1, "label_smoothing": 0.1, "ema": 0.9, "ema_warmup": True, "report": "best",
    "clip": 1.0, "layer_decay": 0.8, "drop_path": 0.2, "teacher": "base", "temperature": 2.0,
    "distil_weight": 0.3, "accumulate": 2, "epochs": 2, "auto_augment": "rand-m3-n1-mstd0.5",
}  # fmt: skip
TAUGHT: dict[str, Any] = {
    "optimiser": "rmsprop", "momentum": 0.8, "schedule": "step", "decay_epochs": 0.5, "steps": 11,
    "lr": 1e-4, "lr_batch": 32, "teacher": "tiny.py:build(num_classes=3, weights=random)",
    "distil": "hard", "teacher_cache": True, "drop_path": 0.2, "stop_after": 2,
    "checkpoint_gradients": True, "precision": "bf16", "evaluate_every": 2,
}  # fmt: skip
DRAWN: dict[str, Any] = {
    "optimiser": "adan", "schedule": "poly", "power": 0.8, "warmup_epochs": 0.4, "warmup_lr": 1e-4,
    "weight_decay": 0.05, "augment": "standard", "ema": 0.5, "drop_path": 0.2, "epochs": 2,
    "clip": 0.5, "inputs": "unit", "resize": "whole", "crop": 0.5, "flip": 0.5, "colour": 0.2,
    "distort": True, "erase": 0.3,
}  # fmt: skip
# Takes two processes, as in `test_distributed`; in all of them; of label maps, in `test_joint`.
OF_MAPS: dict[str, Any] = {"zoom": 2.0, "one_class": 0.5}
# Of a search, in `test_search`.
OF_SEARCHES: dict[str, Any] = {
    "macs": "1G", "search": "random", "search_epochs": 3, "search_steps": 7, "search_lr": 1e-4,
    "search_min_lr": 1e-5, "search_draw": 2, "gate_lr": 0.1, "cost_weight": 2.0, "count": "patches",
}  # fmt: skip
# Of features, in `test_features`.
OF_FEATURES = {"cache_dtype": "bf16", "cache_at": '"kept"'}
# Of stitches, in `test_stitches`.
APART = {"shard", "batch", *OF_FEATURES, *OF_MAPS, *OF_SEARCHES, *OF_STITCHES}


def test_every_setting_is_in_a_recipe() -> None:
    plain = dataclasses.asdict(Settings())
    recipes = (MIXED, TAUGHT, DRAWN)
    changed = {k for recipe in recipes for k, value in recipe.items() if value != plain[k]}
    assert changed | set(FREE) | APART == set(options())


@pytest.mark.parametrize("recipe", [MIXED, TAUGHT, DRAWN], ids=["mixed", "taught", "drawn"])
def test_a_resumed_run_ends_bit_identical(
    recipe: dict[str, Any], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(batch=64, checkpoint_every=5, log_every=1, **recipe)

    def run(out: str, *, resume: bool = False) -> dict[str, torch.Tensor]:
        rewritten = vr.apply(SPEC + FACTORS)
        return tune(rewritten, "digits:0-2", settings, out=out, resume=resume, device="cpu").delta()

    whole = run("whole")
    original, calls = TrainingLoop._update, []

    def interrupted(loop: TrainingLoop, sums: Any) -> None:
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        original(loop, sums)

    monkeypatch.setattr(TrainingLoop, "_update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("again")
    monkeypatch.setattr(TrainingLoop, "_update", original)
    resumed = run("again", resume=True)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    last = max(Path("whole/checkpoints").iterdir()).name
    kept = [Path(f"{out}/checkpoints/{last}/tensors.safetensors") for out in ("whole", "again")]
    assert same_tensors(*kept)
    assert without_times(Path("again")) == without_times(Path("whole"))


# -- what is wrong --------------------------------------------------------------------------------


def _codes(text: str) -> list[str]:
    try:
        return [warning.code for warning in vr.parse(f"train head\ntune {{ {text} }}\n").warnings]
    except ErrorList as several:
        return [error.code for error in several.errors]
    except VitrewriteError as error:
        return [error.code]


def _wrong(info: OptionInfo) -> list[tuple[str, str]]:
    """Values that the setting cannot have, and what is said of them."""
    if info.type == "str":
        return [("3", "VR204"), *([('"nonsense"', "VR205")] if info.choices else [])]
    bounds = [
        (info.minimum, -1), (info.maximum, 1), (info.above, 0), (info.below, 0)
    ]  # fmt: skip
    beyond = [(str(round(bound + step)), "VR203") for bound, step in bounds if bound is not None]
    odd = ('"nonsense"', "VR205" if info.words else "VR204")
    return [odd, *beyond, *([] if info.nullable else [("none", "VR204")])]


@pytest.mark.parametrize("name", options())
def test_a_value_that_a_setting_cannot_have(name: str) -> None:
    for value, code in _wrong(options()[name]):
        assert _codes(f"{name} = {value}") == [code], value


@pytest.mark.parametrize("name", [k for k, info in options().items() if info.needs])
def test_a_setting_that_the_others_leave_without_effect_is_told(name: str) -> None:
    info, plain = options()[name], dataclasses.asdict(Settings())
    stitches = {
        "stitch_warmup": 0.2, "stitch_scores": "maximum", "stitch_temperature": 2.0,
        "stitch_weight": 0.3, "stitch_batch": 2, "stitch_rounds": 3, "stitch_table": '"t.json"',
    }  # fmt: skip
    values = {**MIXED, **TAUGHT, **DRAWN, **OF_MAPS, **OF_SEARCHES, **OF_FEATURES, **stitches}
    alone = {"steps": 3} if name == "epochs" else {"schedule": "constant"}
    assert not holds(info.needs, {**plain, **alone}), "the test does not take its effect away"
    ((key, given),) = alone.items()
    text = f"{key} = {given}, {name} = {str(values[name]).lower()}"
    assert _codes(text) == ["VR230"]
