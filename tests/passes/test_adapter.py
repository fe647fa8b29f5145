"""The `adapter` pass at branches: the authors' numbers, placement, bad input, composition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer

import vitrewrite as vr
from tests.lowering.models import fill, vit
from tests.models import spread
from tests.passes.by_hand import bottleneck, golden, images, small, tensors

PFEIFFER = "insert adapter(hidden=3) at blocks[*].mlp_branch\n"
HOULSBY = "insert adapter(hidden=3) at every branch\n"
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_golden() -> None:
    spec = "insert adapter(hidden=8) at blocks[*].mlp_branch\ntrain head\n"
    golden("adapter-mlp", spec, lambda name: name.replace(".adapter.", "."))


def behind(model: Any, rewritten: Any, where: dict[str, tuple[str, int]], *, after: bool) -> Any:
    """The user's own model, with adapters at what a module gets or yields."""

    def adapted(z: torch.Tensor, path: str, axis: int) -> torch.Tensor:
        made = bottleneck(z.movedim(axis, -1), tensors(rewritten, f"{path}.adapter"), F.gelu)
        return z + made.movedim(-1, axis)

    for path, (module, axis) in where.items():
        held = model.get_submodule(module)
        if after:
            held.register_forward_hook(lambda _m, _x, y, p=path, a=axis: adapted(y, p, a))
        else:
            held.register_forward_pre_hook(lambda _m, x, p=path, a=axis: (adapted(x[0], p, a),))
    return model


DROPS = {
    "beit_base_patch16_224": ("drop_path1", "drop_path2", -1),
    "vit_small_patch14_reg4_dinov2": ("drop_path1", "drop_path2", -1),
    "swin_tiny_patch4_window7_224": ("drop_path1", "drop_path2", -1),
    "pvt_v2_b0": ("drop_path1", "drop_path2", -1),
    "convnext_atto": ("", "drop_path", 1),
}


@pytest.mark.parametrize("name", DROPS)
@torch.no_grad()
def test_it_stands_between_layer_scale_and_drop_path(name: str) -> None:
    model, (first, last, axis) = small(name, drop_path_rate=0.2), DROPS[name]
    rewritten = fill(vr.apply(HOULSBY, model))
    blocks = {n.partition(".adapter")[0].removesuffix(".attn_branch") for n in rewritten.delta()}
    where = {b: (f"{b}.{last}", axis) for b in blocks}
    where |= {f"{b}.attn_branch": (f"{b}.{first}", axis) for b in blocks} if first else {}
    x = images(model)
    expected = behind(model, rewritten, where, after=False)(x)
    torch.testing.assert_close(rewritten.module.eval()(x), expected, rtol=1e-4, atol=1e-5)
    rewritten.module.train(), model.train()
    found = []
    for each in (rewritten.module, model):
        torch.manual_seed(3)
        found.append(each(x))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", ["front", "behind"])
@torch.no_grad()
def test_a_branch_that_ends_in_its_norm_wants_to_be_told_the_side(side: str) -> None:
    model = small("swinv2_tiny_window8_256")
    with pytest.raises(vr.VitrewriteError, match=r"VR403 .*ends in its norm") as caught:
        vr.apply(HOULSBY, model)
    assert "norm=front or norm=behind" in caught.value.render()
    spec = f"insert adapter(hidden=3, norm={side}) at blocks[*].mlp_branch\n"
    rewritten = fill(vr.apply(spec, model))
    blocks = {n.partition(".adapter")[0] for n in rewritten.delta()}
    where = {b: (f"{b}.norm2", -1) for b in blocks}
    x = images(model)
    vr.verify(rewritten, graphs=False)
    expected = behind(model, rewritten, where, after=side == "behind")(x)
    torch.testing.assert_close(rewritten.module.eval()(x), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_on_a_model_of_hugging_face() -> None:
    """It has no drop path: what other passes put around a branch stays around."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        num_labels=5,
    )
    model = spread(transformers.ViTForImageClassification(config)).eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    other = "insert adaptformer(hidden=2, dropout=0) at every branch\n"
    found = [
        fill(vr.apply(spec, model, example=x)).module.eval()(x)["logits"]
        for spec in (HOULSBY + other, other + HOULSBY)
    ]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        ("insert adapter(hidden=8) at blocks[*].mlp_branch\n", 156_768),
        ("insert adapter(hidden=8) at every branch\n", 2 * 156_768),
        ("insert adapter(hidden=32) at blocks[*].mlp_branch\n", 599_424),
        ("insert adapter(hidden=8) at blocks[*].mlp.fc2\n", 156_768),
    ],
)
def test_counts_of_the_card_on_vit_base(spec: str, count: int) -> None:
    plan = vr.plan(spec, "vit_base")
    assert plan.measures.params.trainable == count
    hidden = 32 if "32" in spec else 8
    places = 2 if "every" in spec else 1
    assert plan.measures.macs - plan.measures.macs_base == places * 12 * 2 * 768 * hidden * 197


@pytest.mark.parametrize(
    ("model", "count"),
    [("swin_base_patch4_window7_224", 204_736), ("convnext_base", 307_104)],
)
def test_counts_of_the_card_on_others(model: str, count: int) -> None:
    at = "every branch" if "convnext" in model else "blocks[*].mlp_branch"
    assert vr.plan(f"insert adapter() at {at}\n", model).measures.params.trainable == count


BAD = [
    ("insert adapter(hidden=16) at blocks[0].mlp_branch\n", "VR403", "not below the width 16"),
    ("insert adapter(hidden=0) at blocks[0].mlp_branch\n", "VR203", "hidden"),
    (PFEIFFER + PFEIFFER, "VR401", "two clauses put adapter at 'blocks[0].mlp_branch'"),
    ("insert adapter() at blocks[0].attn\n", "VR406", "attaches to branch, linear"),
    ("insert adapter(norm=inside) at blocks[0].mlp_branch\n", "VR20", "norm"),
]


@pytest.mark.parametrize(("spec", "code", "message"), BAD)
def test_bad_input_is_one_clear_error(spec: str, code: str, message: str) -> None:
    with pytest.raises(vr.VitrewriteError) as caught:
        vr.apply(spec, vit())
    assert caught.value.code.startswith(code)
    assert message in caught.value.render()


def test_options_without_effect_are_told() -> None:
    spec = "insert adapter(hidden=2, norm=behind, drop_path=0.2) at blocks[0].mlp_branch\n"
    warnings = vr.apply(spec, vit()).report["warnings"]
    assert any("adapter.norm has no effect" in w for w in warnings)
    assert any("adapter.drop_path has no effect at a branch" in w for w in warnings)


def test_applying_twice_is_detected() -> None:
    once = vr.apply(HOULSBY, vit())
    with pytest.raises(vr.VitrewriteError, match="VR402"):
        vr.apply(PFEIFFER, once.module, example=torch.zeros(1, 3, 16, 16))


@torch.no_grad()
def test_what_adds_nothing_goes_when_lowered() -> None:
    """Exactly zero, as at the start; a trained one stays."""
    fresh = vr.apply(PFEIFFER, vit())
    assert vr.lower(fresh).module.state_dict().keys() == vit().state_dict().keys()
    assert vr.lower(fill(fresh)).report["params"]["total"] == fresh.report["params"]["total"]


@torch.no_grad()
def test_dropout_acts_in_training_only() -> None:
    spec = "insert adapter(hidden=3, dropout=0.5) at every branch\n"
    rewritten = fill(vr.apply(spec, vit()))
    assert torch.equal(rewritten.module.eval()(IMAGES), rewritten.module(IMAGES))
    assert not torch.equal(rewritten.module.train()(IMAGES), rewritten.module(IMAGES))
    plain = fill(vr.apply(HOULSBY, vit())).module.train()
    assert torch.equal(plain(IMAGES), plain(IMAGES))  # no dropout by default


CLAUSES = (
    "insert adapter(hidden=3) at every branch",
    "insert lora(rank=2, dropout=0) at blocks[*].mlp.fc2",
    "insert adaptformer(hidden=3, dropout=0) at blocks[*].mlp_branch",
    "insert ssf() at blocks[*].mlp.fc2",
)


@torch.no_grad()
def test_every_order_is_the_same_model() -> None:
    """LoRA and SSF on fc2 come before it; AdaptFormer is added behind it."""
    found = [
        fill(vr.apply("\n".join(order) + "\n", vit())).module.eval()(IMAGES)
        for order in (CLAUSES, CLAUSES[::-1])
    ]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_it_verifies() -> None:
    model = VisionTransformer(
        img_size=16,
        patch_size=4,
        embed_dim=16,
        depth=3,
        num_heads=2,
        num_classes=5,
        init_values=0.1,
        drop_path_rate=0.3,
    )
    vr.verify(fill(vr.apply("\n".join(CLAUSES) + "\n", model)))
