"""What timm's models tell of themselves, on results: kept where it stays true, else told apart."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay
from torch import fx, nn

import vitrewrite as vr
from vitrewrite.emission.twin import emitted_twin
from vitrewrite.folder.writing import model_text
from vitrewrite.tracing.unit import checkpointed

LORA = "insert lora(rank=2) at blocks[*].attn.{q, v}"


@pytest.fixture(scope="module")
def model() -> VisionTransformer:
    torch.manual_seed(0)
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return VisionTransformer(**small, num_classes=3).eval()


@pytest.fixture(scope="module")
def rewritten(model: VisionTransformer) -> vr.Rewritten:
    return vr.apply(f"{LORA}\ntrain blocks", model)


def test_numbers_and_groups_are_those_of_the_model(
    model: VisionTransformer, rewritten: vr.Rewritten
) -> None:
    found: Any = rewritten.module
    for name in ("num_features", "embed_dim", "num_classes"):
        assert getattr(found, name) == getattr(model, name)
    for coarse in (False, True):
        assert found.group_matcher(coarse=coarse) == model.group_matcher(coarse=coarse)
    assert found.no_weight_decay() == model.no_weight_decay()
    assert found.get_classifier() is found.head
    assert vr.capture(found).num_classes == 3  # type: ignore[attr-defined]


def test_layer_decay_gives_the_same_groups(model: VisionTransformer) -> None:
    captured = vr.capture(model)
    scales = []
    for each in (model, captured):
        groups = param_groups_layer_decay(each, layer_decay=0.5)
        names = {id(p): n for n, p in each.named_parameters()}
        scales.append({names[id(p)]: g["lr_scale"] for g in groups for p in g["params"]})
    assert scales[0] == scales[1]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("get_intermediate_layers", "create_feature_extractor"),
        ("forward_intermediates", "forward hooks"),
        ("reset_classifier", "num_classes="),
        ("set_input_size", "img_size="),
    ],
)
def test_what_is_not_kept_says_what_to_use(rewritten: vr.Rewritten, name: str, told: str) -> None:
    with pytest.raises(AttributeError, match=told):
        getattr(rewritten.module, name)
    assert not hasattr(rewritten.module, "anything_else")


def test_a_model_that_tells_nothing_has_nothing() -> None:
    captured = vr.capture(nn.Sequential(nn.Linear(4, 4)), torch.zeros(2, 4))
    assert not any(hasattr(captured, n) for n in ("num_classes", "group_matcher", "embed_dim"))


def test_checkpointing_can_be_switched(model: VisionTransformer) -> None:
    rewritten = vr.apply(LORA, model)
    module: Any = rewritten.module
    before = model_text(rewritten)
    x = torch.randn(2, 3, 32, 32)
    wanted = module.eval()(x)
    module.set_grad_checkpointing()
    assert checkpointed(module) == ("blocks.0", "blocks.1")
    text = model_text(rewritten)
    assert "checkpoint(self.compute, x, use_reentrant=False)" in text
    assert torch.equal(emitted_twin(text, module.state_dict())(x), wanted)
    assert torch.equal(module.train()(x), wanted)  # no random layer is on but LoRA's, which is zero
    module.set_grad_checkpointing(enable=False)
    assert model_text(rewritten) == before


def test_blocks_of_stages_are_what_is_checkpointed() -> None:
    small = {"embed_dim": 16, "depths": (1, 2), "num_heads": (2, 2), "img_size": 32}
    swin = timm.create_model("swin_tiny_patch4_window7_224", **small, window_size=4, num_classes=3)
    captured = vr.capture(swin)
    captured.set_grad_checkpointing()
    assert checkpointed(captured) == ("layers.0.blocks.0", "layers.1.blocks.0", "layers.1.blocks.1")


def test_a_flat_graph_can_be_traced_again_with_its_guards(model: VisionTransformer) -> None:
    flat = vr.capture(model).flat()
    again = fx.symbolic_trace(flat)
    again.graph.eliminate_dead_code()
    again.recompile()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(x), model(x))
    with pytest.raises(ValueError, match="captured for 32x32, got 64x64"):
        again(torch.randn(1, 3, 64, 64))
