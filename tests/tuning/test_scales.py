"""Decay by layer against timm's own groups, and factors for parts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import timm.optim
import torch
from timm.models.vision_transformer import VisionTransformer

import vitrewrite as vr
from vitrewrite.errors import TuneError
from vitrewrite.language.settings import Settings
from vitrewrite.tuning import optimisation
from vitrewrite.tuning.scales import scales
from vitrewrite.tuning.schedules import Rates

EVERYTHING = "train blocks + head + norm + patch_embed + pos_embed + cls_token\n"


def vit(depth: int = 3) -> torch.nn.Module:
    return VisionTransformer(
        img_size=16, patch_size=4, embed_dim=32, depth=depth, num_heads=2, num_classes=3
    )


def run_of(spec: str, model: Any, **settings: Any) -> Any:
    rewritten = vr.apply(spec, model)
    found = Settings().changed({**rewritten.spec.tune.values, **settings})
    return SimpleNamespace(
        settings=found,
        module=rewritten.module,
        rewritten=rewritten,
        groups=[],
        phase=SimpleNamespace(name="train"),
        per_epoch=4,
        steps=20,
        step=5,
        memory={},
    )


def test_decay_by_layer_is_timms() -> None:
    library: Any = timm.optim
    model = vit()
    run = run_of(EVERYTHING, model, layer_decay=0.6, weight_decay=0.05)
    expected = {}
    names = {id(p): n for n, p in model.named_parameters()}
    for group in library.param_groups_layer_decay(model, 0.05, layer_decay=0.6):
        for parameter in group["params"]:
            expected[names[id(parameter)]] = (group["lr_scale"], group["weight_decay"])
    found = {
        name: (group["lr_scale"], group["weight_decay"])
        for group in optimisation.create(run).param_groups
        for name in group["names"]
    }
    assert found == {name: pytest.approx(value) for name, value in expected.items()}


def test_what_a_pass_put_in_is_in_the_layer_of_its_site() -> None:
    spec = "insert lora(rank=2) at blocks[*].attn.q\ninsert ssf() at every norm\ntrain head\n"
    run = run_of(spec, vit(), layer_decay=0.5)
    found = {name: scale.lr for name, scale in scales(run).items()}
    base = {name: found[name] for name in found if name.endswith("mlp.fc1.weight")}
    assert found["head.weight"] == 1
    assert [*base.values()] == [0.125, 0.25, 0.5]
    for block, rate in enumerate(base.values()):
        assert found[f"blocks.{block}.attn.qkv_lora.down"] == rate
        assert found[f"blocks.{block}.norm2_ssf.scale"] == rate
    assert found["norm_ssf.scale"] == found["norm.weight"] == 0.5


def test_factors_multiply_rates_and_decay_and_the_first_one_holds() -> None:
    factors = "lr(head + norm) = 10, lr(blocks[1:3] + norm) = 0.1, weight_decay(blocks[0]) = 0"
    text = "insert lora(rank=2) at blocks[*].attn.q\ntrain head + norm + blocks[0]\n"
    run = run_of(f"{text}tune {{ lr = 0.5, weight_decay = 0.2, {factors} }}\n", vit())
    optimiser = optimisation.create(run)
    Rates(run, optimiser).set()
    rate = optimiser.param_groups[1]["lr"] / optimiser.param_groups[1]["lr_scale"]
    found = {
        name: (group["lr"] / rate, group["weight_decay"])
        for group in optimiser.param_groups
        for name in group["names"]
    }
    assert found["head.weight"] == pytest.approx((10, 0.2))
    assert found["norm.weight"] == pytest.approx((10, 0))
    assert found["blocks.1.attn.qkv_lora.up"] == pytest.approx((0.1, 0.2))
    assert found["blocks.0.attn.qkv_lora.up"] == found["blocks.0.mlp.fc1.weight"] == (1, 0)
    assert len({group["name"] for group in optimiser.param_groups}) == len(optimiser.param_groups)


@pytest.mark.parametrize(
    ("factors", "code"),
    [("lr(blocks[0]) = 2", "VR432"), ("lr(head) = 2, lr(head) = 3", "VR432"),
     ("lr(decoder) = 2", "VR301"), ("lr(blocks[9]) = 2", "VR304")],
)  # fmt: skip
def test_a_factor_without_effect_is_an_error_at_its_place(factors: str, code: str) -> None:
    with pytest.raises(vr.VitrewriteError) as caught:
        vr.plan(f"train head\ntune {{ {factors} }}\n", vit(1))
    assert caught.value.code == code
    assert caught.value.span is not None
    assert caught.value.span.line == 2


def test_a_model_that_does_not_say_its_layers() -> None:
    silent = vit(1)
    silent.group_matcher = None  # type: ignore[assignment]
    run = run_of("train head\n", silent, layer_decay=0.5)
    with pytest.raises(TuneError, match="has no 'group_matcher'") as caught:
        optimisation.create(run)
    assert caught.value.code == "VR861"
