"""The `side_tuning` pass: AlexNet and the blend by hand, counts, lowering, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import vitrewrite as vr
from tests.lowering.models import fill, vit
from tests.refusal import expect_refusal

SPEC = "insert side_tuning() before head\ntrain head\n"
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def model(**options: Any) -> Any:
    return vit(**{"img_size": 64, "patch_size": 16, **options}).eval()


def alexnet(x: torch.Tensor, delta: dict[str, torch.Tensor]) -> torch.Tensor:
    """The convolutions and poolings of AlexNet, by the numbers that torchvision gives them."""
    for number, stride, padding, pool in (
        (0, 4, 2, True), (3, 1, 2, True), (6, 1, 1, False), (8, 1, 1, False), (10, 1, 1, True),
    ):  # fmt: skip
        weight, bias = (delta[f"head.side_tuning.side.{number}.{k}"] for k in ("weight", "bias"))
        x = F.relu(F.conv2d(x, weight, bias, stride, padding))
        x = F.max_pool2d(x, 3, 2) if pool else x
    return F.adaptive_avg_pool2d(x, 6).flatten(1)


@pytest.mark.parametrize("pool", ["token", "avg"])
@torch.no_grad()
def test_a_blend_by_hand(pool: str) -> None:
    base = model(global_pool=pool)
    rewritten = fill(vr.apply(SPEC, base))
    delta = rewritten.delta()
    side = F.linear(alexnet(IMAGES, delta), delta["head.side_tuning.side_projection.weight"])
    share = torch.sigmoid(delta["head.side_tuning.side_alpha"])
    x = base.forward_head(base.forward_features(IMAGES), pre_logits=True)
    z = share * x + (1 - share) * side
    expected = F.linear(z, delta["head.weight"], delta["head.bias"])
    found = rewritten.module.eval()(IMAGES)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(rewritten.module.train()(IMAGES), found)
    lowered = vr.lower(rewritten)
    assert "head.side_tuning.side_alpha" not in lowered.delta()
    torch.testing.assert_close(lowered.module.eval()(IMAGES), found, rtol=1e-4, atol=1e-4)


def test_gradients_reach_the_side_network_alone() -> None:
    rewritten = fill(vr.apply(SPEC, model()))
    rewritten.module.train()(IMAGES).square().sum().backward()
    named = dict(rewritten.module.named_parameters())
    reached = {n for n, p in named.items() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached == {n for n in named if n.startswith("head")}
    vr.verify(rewritten, graphs=False)


def test_figures_of_the_card() -> None:
    measures = vr.plan(f"model vit_base_patch16_224\n{SPEC}").measures
    assert measures.params.trainable_without_head == 2_469_696 + 7_077_888 + 1


def test_initial_values() -> None:
    delta = vr.apply(SPEC, model(in_chans=1)).delta()
    assert float(delta["head.side_tuning.side_alpha"]) == 0
    weight = delta["head.side_tuning.side.0.weight"]
    assert weight.shape == (64, 1, 11, 11)
    assert float(weight.abs().max()) <= 1 / 11
    assert float(weight.std()) == pytest.approx(1 / 11 / 3**0.5, rel=0.05)


BAD: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "small": (SPEC, {"img_size": 48}, "VR410", "img_size of 63"),
    "no head": (SPEC, {"num_classes": 0}, "VR406", "no layer that makes classes"),
    "twice": (SPEC + SPEC, {}, "VR401", "side_tuning"),
    "lora": ("insert lora(rank=2) at blocks[*].attn.q\n" + SPEC, {}, "VR520", "lora"),
    "norm": ("train norm\n" + SPEC, {}, "VR520", "norm.bias"),
    "lst": (SPEC + "insert lst(reduction=2) at blocks[*]\n", {}, "VR455", "side_tuning and lst"),
    "vqt": ("prepend vqt() to blocks[*]\n" + SPEC, {}, "VR455", "vqt and side_tuning"),
    "option": ("insert side_tuning(alpha=1) before head\n", {}, "VR20", "alpha"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    spec, options, code, words = BAD[name]
    expect_refusal(spec, model(**options), code, words)
