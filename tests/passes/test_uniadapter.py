"""The `uniadapter` pass: the authors' numbers on a vision tower, counts, lowering, composition."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

import vitrewrite as vr
from tests import goldens
from tests.lowering.models import fill, vit
from tests.passes.by_hand import bottleneck, golden, images, small, tensors

SPEC = "insert uniadapter(hidden=5, scale=0.5) at blocks[*].mlp_branch\n"
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
MODULE: Any = importlib.import_module("vitrewrite.passes.uniadapter").VisualAdapter


def test_golden() -> None:
    """The tower yields all tokens, as what reads them is another tower."""
    tower: Any = goldens.case("uniadapter").base()
    tower.global_pool = ""
    golden("uniadapter", "insert uniadapter(hidden=12) at blocks[*].mlp_branch\n", str, tower)


@torch.no_grad()
def test_golden_module() -> None:
    case = goldens.case("uniadapter")
    module = MODULE(32, 12, 0.1)
    prefix = "method.blocks.0.uniadapter."
    module.load_state_dict({n: case.tensors[f"{prefix}{n}"] for n in module.state_dict()})
    x = case.tensors["module_input"]
    case.close(module(x, torch.zeros_like(x)), "module_output.visual")


def by_hand(model: Any, rewritten: Any, paths: tuple[str, ...], axis: int) -> Any:
    """The user's own model: what enters the MLP half, adapted, is added behind the drop path."""
    for path in paths:
        block, kept = model.get_submodule(path), list[torch.Tensor]()
        delta = tensors(rewritten, f"{path}.uniadapter")
        delta |= {f"up.{k}": delta[f"up_visual.{k}"] for k in ("weight", "bias")}

        def add(_m: Any, _x: Any, y: Any, kept: Any = kept, delta: Any = delta) -> torch.Tensor:
            x = kept.pop().movedim(axis, -1)
            z = torch.nn.functional.layer_norm(
                x, x.shape[-1:], delta["norm.weight"], delta["norm.bias"]
            )
            made: torch.Tensor = y + 0.5 * bottleneck(z, delta, torch.relu).movedim(-1, axis)
            return made

        first = block.norm2 if axis == -1 else block.conv_dw
        last = block.drop_path2 if axis == -1 else block.drop_path
        first.register_forward_pre_hook(lambda _m, x, kept=kept: kept.append(x[0]))
        last.register_forward_hook(add)
    return model


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("beit_base_patch16_224", ("blocks.0", "blocks.1")),
        ("swin_tiny_patch4_window7_224", ("layers.0.blocks.0", "layers.1.blocks.0")),
        ("convnext_atto", ("stages.0.blocks.0", "stages.1.blocks.1")),
    ],
)
@torch.no_grad()
def test_it_reads_the_stream_outside_of_the_drop_path(name: str, paths: tuple[str, ...]) -> None:
    model = small(name)
    numbers = (0, 2) if name == "convnext_atto" else (0, 1)
    where = " + ".join(f"(every branch in blocks[{i}])" for i in numbers)
    if name != "convnext_atto":
        where = " + ".join(f"blocks[{i}].mlp_branch" for i in numbers)
    rewritten = fill(vr.apply(f"insert uniadapter(hidden=5, scale=0.5) at {where}\n", model))
    x = images(model)
    expected = by_hand(model, rewritten, paths, 1 if name == "convnext_atto" else -1)(x)
    for module in (rewritten.module.eval(), vr.lower(rewritten).module):
        torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-4)


def test_counts_of_the_card() -> None:
    plan = vr.plan("insert uniadapter() at blocks[*].mlp_branch\n", "vit_base_patch16_384")
    assert plan.measures.params.trainable == 9_470_976
    added = plan.measures.macs - plan.measures.macs_base
    assert added == 12 * 577 * 2 * 768 * 512
    merged = vr.plan("insert merge.bdm() after blocks[6].attn\n", "vit_base_patch16_384")
    assert abs(merged.measures.macs_lowered - 42.02e9) < 0.2e9


def test_the_start() -> None:
    drawn = vr.apply("insert uniadapter() at blocks[0].mlp_branch\n", vit())
    weight = drawn.delta()["blocks.0.uniadapter.up_visual.weight"]
    assert 0.018 < float(weight.std()) < 0.022
    vr.verify(drawn, graphs=False)
    zero = vr.apply("insert uniadapter(zero_visual=true) at blocks[*].mlp_branch\n", vit())
    with torch.no_grad():
        assert torch.equal(zero.module.eval()(IMAGES), vit().eval()(IMAGES))


@torch.no_grad()
def test_a_learned_scale_is_trained_and_lowered() -> None:
    spec = "insert uniadapter(hidden=5, learnable_scale=true) at blocks[*].mlp_branch\n"
    rewritten = vr.apply(spec, vit())
    assert rewritten.delta()["blocks.0.uniadapter.scale"].tolist() == [pytest.approx(0.1)]
    fill(rewritten)
    lowered = vr.lower(rewritten)
    torch.testing.assert_close(
        lowered.module(IMAGES), rewritten.module.eval()(IMAGES), rtol=1e-4, atol=1e-5
    )
    assert "blocks.0.uniadapter.scale" not in lowered.delta()
    vr.verify(rewritten, graphs=False)


@torch.no_grad()
def test_it_reads_merged_tokens_whatever_the_order() -> None:
    merge = "insert merge.bdm(dropout=0) after blocks[1].attn\n"
    found = [fill(vr.apply(s, vit())).module.eval()(IMAGES) for s in (SPEC + merge, merge + SPEC)]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_nothing_is_left_of_scale_zero() -> None:
    rewritten = fill(vr.apply("insert uniadapter(scale=0) at every branch\n", vit()))
    assert torch.equal(vr.lower(rewritten).module(IMAGES), vit().eval()(IMAGES))


def test_bad_input_is_one_clear_error() -> None:
    for spec, message in (
        ("insert uniadapter(hidden=0) at blocks[0].mlp_branch\n", "VR203"),
        ("insert uniadapter() at blocks[0].mlp\n", "VR406"),
        (SPEC + SPEC, "VR401"),
    ):
        with pytest.raises(vr.VitrewriteError, match=message):
            vr.apply(spec, vit())
    told = vr.apply("insert uniadapter() at blocks[0].mlp_branch\n", vit()).report["warnings"]
    assert any("no bottleneck of 16 channels" in w for w in told)


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
    vr.verify(fill(vr.apply(SPEC, model)))
