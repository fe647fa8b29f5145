"""Sensitivities of a model with queries: the matching loss, over backbone and decoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import vitrewrite as vr
from tests.tuning.scenes import model_folder, scenes
from vitrewrite import models
from vitrewrite.anatomy import analyse
from vitrewrite.profiling.run import measure
from vitrewrite.sensitivity import Candidate, Profile, candidates
from vitrewrite.tracing import trace
from vitrewrite.verification import quick

pytest.importorskip("transformers")
pytestmark = pytest.mark.xdist_group("sensitivity-segmentation")

CHOICE = "sensitive(budget=4K, scale=10K, samples=4)"
SPEC = f"""model hf:tiny
insert lora(rank=2, convention=spt) at {CHOICE}
insert sparse() at {CHOICE}
train optional {CHOICE}
train head

require identity at init
require lowers exactly
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sensitivity")
    model_folder(made / "tiny")
    scenes(made / "data", training=5, validation=1)
    return made


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def profile(folder: Path) -> Profile:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return measure(vr.parse(SPEC), data="data")


def test_what_is_measured_does_not_depend_on_batches(profile: Profile) -> None:
    again = measure(vr.parse(SPEC), data="data", batch=1)
    assert again.tensors.keys() == profile.tensors.keys()
    for name, tensor in profile.tensors.items():
        torch.testing.assert_close(again.tensors[name], tensor, rtol=1e-3, atol=1e-9)


def test_matrices_of_both_decoders_are_candidates() -> None:
    root = trace(models.create("hf:tiny", meta=True))
    found = {c.name: c for c in candidates(root, analyse(root))}
    layer = "model.transformer_module.decoder.layers.1"
    rows = [found[f"{layer}.cross_attn.in_proj_weight[{part}]"] for part in "qkv"]
    assert [(c.rows, c.shape, c.entries) for c in rows] == [
        ((0, 32), (32, 32), False), ((32, 64), (32, 32), False), ((64, 96), (32, 32), False),
    ]  # fmt: skip
    assert f"{layer}.cross_attn.in_proj_bias[q]" not in found
    assert found[f"{layer}.self_attn.k_proj.bias"].null
    assert found[f"{layer}.fc1.weight"].site is not None
    pixels = "model.pixel_level_module.decoder.encoder.layers.0"
    assert _role(found[f"{pixels}.fc2.weight"]) == "pixel_decoder.layers[0].mlp.fc2"
    masks = "model.transformer_module.decoder.mask_predictor.mask_embedder.2.0.weight"
    assert _role(found[masks]) == "decoder.mask_head[2]"
    assert found["model.transformer_module.decoder.layernorm.weight"].entries  # of all its calls
    places = {c.block: c.tensor for c in found.values() if c.tensor.endswith("fc2.weight")}
    assert places["decoder.layers[1]"] == places["pixel_decoder.layers[0]"] == "fc2.weight"
    assert found[masks].tensor == "decoder.mask_head.weight"
    assert not any("queries" in name or "class_predictor" in name for name in found)


def _role(candidate: Candidate) -> str:
    assert candidate.site is not None
    return candidate.site.role


def test_a_budget_is_spent_on_both_decoders(profile: Profile) -> None:
    made: Any = vr.apply(SPEC, profile=profile)
    lora, sparse, trained, _ = (step.sites for step in made.result.steps)
    assert any(".cross_attn." in role for role in lora)
    assert any("decoder.mask_head" in role for role in lora)
    assert any("pixel_level_module.decoder" in role for role in (*sparse, *trained))
    assert any("pixel_level_module.encoder" in role for role in trained)
    assert all(check.holds for check in quick(made))
