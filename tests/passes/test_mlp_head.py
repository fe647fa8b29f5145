"""The `mlp_head` pass: an MLP of the user's own beside it, counts, batch norms, bad input."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import vitrewrite as vr
from tests.lowering.models import fill, vit
from vitrewrite.rewrite.rewritten import Rewritten

SPEC = "replace head with mlp_head(layers={})\ntrain head\nrequire lowers exactly\n"
CLASSES = 5
IMAGES = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def applied(layers: int = 3) -> tuple[Any, Rewritten]:
    """A model of the user and its rewrite, whose norms have seen something."""
    model = vit()
    rewritten = fill(vr.apply(SPEC.format(layers), model))
    for norm in rewritten.module.modules():
        if isinstance(norm, nn.BatchNorm1d):
            nn.init.normal_(norm.running_mean, generator=torch.Generator().manual_seed(2))
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return model, rewritten


def by_hand(width: int, layers: int, delta: Mapping[str, torch.Tensor]) -> nn.Sequential:
    """VPT's MLP: linear, relu, batch norm, dropout of 0.1, and again; then the classes."""
    parts: list[nn.Module] = []
    for _ in range(layers - 1):
        parts += [nn.Linear(width, width), nn.ReLU(), nn.BatchNorm1d(width), nn.Dropout(0.1)]
    made = nn.Sequential(*parts, nn.Linear(width, CLASSES))
    state = {}
    for name, tensor in delta.items():
        kind, _, rest = name.removeprefix("head.mlp_head.").partition(".")
        number, _, leaf = rest.rpartition(".")
        place = 4 * int(number or layers - 1) + 2 * (kind == "norms")
        state[f"{place}.{leaf}"] = tensor
    made.load_state_dict(state)
    return made


@pytest.mark.parametrize("layers", [2, 3, 4])
def test_it_is_the_users_own_mlp(layers: int) -> None:
    model, rewritten = applied(layers)
    reference = by_hand(16, layers, rewritten.delta())
    features = model.eval().forward_head(model.forward_features(IMAGES), pre_logits=True)
    module = rewritten.module.eval()
    torch.testing.assert_close(module(IMAGES), reference.eval()(features), rtol=1e-5, atol=1e-6)
    torch.manual_seed(3)
    trained = rewritten.module.train()(IMAGES)
    torch.manual_seed(3)
    torch.testing.assert_close(trained, reference.train()(features), rtol=1e-5, atol=1e-6)


def test_counts_of_the_card() -> None:
    plan = vr.plan(
        "replace head with mlp_head()\ntrain head\nrequire trainable(head=0) == 1184256\n",
        "vit_base_patch16_224",
    )
    head = 768 * 1000 + 1000
    assert plan.to_json()["params"]["trainable"] == 1_184_256 + head
    assert plan.to_json()["params"]["total"] == 85_798_656 + 1_184_256 + head


def test_gradients_reach_the_head_alone() -> None:
    _, rewritten = applied()
    rewritten.module.train()(IMAGES).square().sum().backward()
    reached = {n for n, p in rewritten.module.named_parameters() if p.grad is not None}
    assert reached == {n for n, _ in rewritten.module.named_parameters() if n.startswith("head.")}
    assert all(
        p.grad.abs().sum() > 0
        for n, p in rewritten.module.named_parameters()
        if p.grad is not None and "hidden" not in n
    )


def test_norms_fold_into_the_layers_behind_them() -> None:
    _, rewritten = applied(4)
    rewritten.module.eval()
    lowered = vr.lower(rewritten)
    got = lowered.module(IMAGES)
    torch.testing.assert_close(got, rewritten.module(IMAGES), rtol=1e-4, atol=1e-5)
    assert not any("norms" in name for name in lowered.module.state_dict() if "head" in name)
    vr.verify(rewritten, graphs=False)


def test_a_delta_has_the_statistics_of_the_norms(tmp_path: Path) -> None:
    model, first = applied()
    second = vr.apply(SPEC.format(3), model)
    vr.save(first, tmp_path / "d.safetensors")
    vr.load(second, tmp_path / "d.safetensors")
    assert torch.equal(second.module.eval()(IMAGES), first.module.eval()(IMAGES))


def test_both_heads_of_a_distilled_model() -> None:
    model = timm.create_model(
        "deit_tiny_distilled_patch16_224",
        img_size=16,
        patch_size=4,
        embed_dim=16,
        depth=2,
        num_heads=2,
        num_classes=4,
    )
    rewritten = vr.apply(SPEC.format(2), model)
    assert {n.split(".")[0] for n in rewritten.delta()} == {"head", "head_dist"}
    assert rewritten.module.eval()(IMAGES).shape == (5, 4)


def test_bad_input() -> None:
    for layers in (1, 65):
        with pytest.raises(vr.VitrewriteError, match=r"VR\d+ .*layers"):
            vr.parse(f"replace head with mlp_head(layers={layers})\n")
    headless = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=0)
    with pytest.raises(vr.VitrewriteError, match="VR406"):
        vr.plan("replace head with mlp_head()\n", headless)
    one = applied()[1].module.train()
    with pytest.raises(ValueError, match="more than 1 value"):
        one(IMAGES[:1])
