"""The `repadapter` pass: the authors' numbers, properties, bad input, lowering, composition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer

import vitrewrite as vr
from tests import goldens
from tests.lowering.models import fill, vit
from tests.models import spread, tiny_vit
from vitrewrite.rewrite.rewritten import Rewritten

BLOCK = "blocks[*].attn.qkv + blocks[*].mlp.fc1"
PAPER = f"insert repadapter(hidden=8, groups=2, scale=0.6, dropout=0) at {BLOCK}\ntrain head\n"


def golden_name(name: str) -> str:
    """`blocks.0.attn.qkv.repadapter.down.weight` is `blocks.0.attn.down.weight` in the case."""
    path, _, tensor = name.partition(".repadapter.")
    return f"{path.rpartition('.')[0]}.{tensor}" if tensor else name


def load_golden(rewritten: Rewritten, case: goldens.Case) -> None:
    for name, tensor in rewritten.delta().items():
        if ".repadapter." in name:
            tensor.copy_(case.tensors[f"method.{golden_name(name)}"].view_as(tensor))


def test_golden_outputs_merged_weights_and_gradients() -> None:
    case = goldens.case("repadapter-block")
    base = case.base()
    case.close(base(case.tensors["input"]), "output_base")
    rewritten = vr.apply(PAPER, base)
    load_golden(rewritten, case)
    with torch.no_grad():
        case.close(rewritten.module.eval()(case.tensors["input"]), "output")
        lowered = vr.lower(rewritten)
        case.close(lowered.module(case.tensors["input"]), "output_merged")
    state = lowered.module.state_dict()
    assert state.keys() == base.state_dict().keys()
    case.merged_close(state, 16)
    found = {golden_name(k): v for k, v in case.gradients_of(rewritten).items()}
    shapes = {k: v.shape for k, v in case.tensors.items() if k.startswith("grad.")}
    assert len(shapes) == 32
    case.gradients_close({k: v.view(shapes.get(f"grad.{k}", v.shape)) for k, v in found.items()})


@settings(max_examples=5)
@given(data=st.data(), seed=st.integers(0, 99))
def test_properties_over_random_vits(data: st.DataObject, seed: int) -> None:
    model, dim = data.draw(tiny_vit()), 16
    groups = data.draw(st.sampled_from([1, 2, 4]), label="groups")
    hidden = groups * data.draw(st.sampled_from([1, 2]), label="hidden / groups")
    sites = data.draw(
        st.sampled_from([BLOCK, "blocks[*].attn.{q, k, v}", "blocks[0].mlp.fc2 + head",
                         "blocks[-1].attn.{qkv, proj}"]))  # fmt: skip
    clause = f"insert repadapter(hidden={hidden}, groups={groups}) at {sites}\n"
    rewritten = vr.apply(clause, model, seed=seed)
    widths: list[Any] = [i.module.dim for i in rewritten.result.editor.insertions]
    count = sum(hidden * d + hidden + d * (hidden // groups) + d for d in widths)
    assert rewritten.report["params"]["trainable"] == count
    assert dim in widths
    vr.verify(rewritten, graphs=False)
    again = vr.apply(clause, model, seed=seed)
    for name, tensor in rewritten.delta().items():
        assert torch.equal(tensor, again.delta()[name])


def test_initial_values_are_xavier_and_zero() -> None:
    delta = vr.apply(PAPER, goldens.case("repadapter-block").base()).delta()
    for name, tensor in delta.items():
        if name.endswith("repadapter.down.weight"):
            assert tensor.shape == (8, 48)
            assert 0.9 < tensor.abs().max() / (6 / (8 + 48)) ** 0.5 <= 1
        elif ".repadapter." in name:
            assert not tensor.any()


def test_dropout_acts_in_training_only() -> None:
    rewritten = fill(vr.apply(f"insert repadapter(dropout=0.5) at {BLOCK}\n", vit()))
    x = torch.randn(2, 3, 16, 16)
    assert not torch.equal(rewritten.module.train()(x), rewritten.module(x))
    assert torch.equal(rewritten.module.eval()(x), rewritten.module(x))


def test_counts_of_the_card_on_vit_base() -> None:
    measures = vr.plan("repadapter", "vit_base").measures
    assert measures.params.trainable_without_head == 239_808
    assert measures.macs - measures.macs_base == 24 * 197 * 9216
    assert measures.macs_lowered == measures.macs_base == 17_563_828_224
    first = "insert repadapter() at blocks[*].attn.qkv\n"
    assert vr.plan(first, "vit_base").measures.params.trainable == 239_808 // 2


def test_a_delta_of_another_scale_is_refused(tmp_path: Path) -> None:
    """The authors' test program fuses with scale 1, whatever was trained."""
    made = vr.apply(f"insert repadapter(scale=10) at {BLOCK}\n", vit())
    vr.save(made, tmp_path / "delta.safetensors")
    other = vr.apply(f"insert repadapter() at {BLOCK}\n", vit())
    with pytest.raises(vr.VitrewriteError, match="spec"):
        vr.load(other, tmp_path / "delta.safetensors")


# -- bad input ------------------------------------------------------------------------------------

CAIT = ("cait_xxs24_224", {"depth": 1})
BAD = [
    ("hidden=8, groups=3", BLOCK, ("", {}), "VR403", "hidden 8 is not 3 equal groups"),
    ("hidden=3, groups=3", BLOCK, ("", {}), "VR403", "width 16 is not 3 equal groups"),
    ("", "blocks[*].attn.{q, v}", ("", {}), "VR410", "the layer makes other rows of the same"),
    ("", "blocks[0].norm1", ("", {}), "VR406", "attaches to linear, conv"),
    ("", "blocks[1].attn.{q, k, v}", CAIT, "VR410", "is read by"),  # q reads one token
    ("", "blocks[0].attn.q", ("pvt_v2_b0", {}), "VR410", "is read by"),
    ("", "blocks[0].attn.{k, v}", ("pvt_v2_b0", {}), "VR410", "are not made of one value"),
    ("", f"{BLOCK}\ninsert repadapter() at blocks[1].mlp.fc1", ("", {}), "VR401", "two clauses"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "sites", "model", "code", "message"), BAD)
def test_bad_input_is_one_clear_error(
    options: str, sites: str, model: tuple[str, dict[str, int]], code: str, message: str
) -> None:
    base = timm.create_model(model[0], **model[1]) if model[0] else vit()
    with pytest.raises(vr.VitrewriteError) as caught:
        vr.apply(f"insert repadapter({options}) at {sites}\n", base)
    assert caught.value.code == code
    assert message in caught.value.render()


def test_applying_twice_is_detected() -> None:
    once = vr.apply("insert repadapter() at blocks[*].attn.qkv\n", vit())
    example = torch.zeros(1, 3, 16, 16)
    with pytest.raises(vr.VitrewriteError, match="VR402"):
        vr.apply("insert repadapter() at blocks[0].attn.qkv\n", once.module, example=example)
    clause = "insert lora(rank=2) at blocks[0].attn.q\n"
    twice = fill(vr.apply(clause, once.module, example=example))
    vr.verify(twice, graphs=False)


# -- lowering -------------------------------------------------------------------------------------


@torch.no_grad()
def lowers(model: torch.nn.Module, clauses: str, size: int = 16) -> Rewritten:
    """What is left of a filled rewrite when it is lowered; its output is the same."""
    torch.manual_seed(0)
    rewritten = fill(vr.apply(clauses, spread(model).eval()))
    x = torch.randn(2, 3, size, size)
    result, lowered = rewritten.module.eval()(x), vr.lower(rewritten)
    scale = float(result.abs().max())
    assert (result - rewritten.base(x)).abs().max() > 1e-3 * scale
    torch.testing.assert_close(lowered.module(x), result, rtol=0, atol=1e-5 * scale)
    return lowered


SWIN = {"img_size": 56, "embed_dim": 16, "num_heads": (1, 2), "depths": (1, 2), "num_classes": 5}
CONVNEXT = {"dims": (8, 16, 16, 16), "depths": (1, 1, 2, 1), "num_classes": 5}
FAMILIES: dict[str, dict[str, Any]] = {
    "swin_tiny_patch4_window7_224": SWIN,
    "convnext_atto": CONVNEXT,  # 1x1 convolutions
    "convnext_tiny": CONVNEXT,  # linear layers on maps
}


@pytest.mark.parametrize("name", FAMILIES)
def test_it_folds_into_layers_of_other_families(name: str) -> None:
    sites = BLOCK if "swin" in name else "blocks[*].mlp.fc1"
    model = timm.create_model(name, **FAMILIES[name])
    lowered = lowers(model, f"insert repadapter() at {sites}\n", 56 if "swin" in name else 64)
    assert not lowered.result.editor.insertions
    assert lowered.module.state_dict().keys() == model.state_dict().keys()


def test_in_front_of_a_depthwise_convolution_it_stays() -> None:
    model = timm.create_model("convnext_atto", **FAMILIES["convnext_atto"])
    lowered = lowers(model, "insert repadapter() at blocks[0].conv_dw + blocks[0].mlp.fc1\n", 64)
    assert [i.path for i in lowered.result.editor.insertions] == [
        "stages.0.blocks.0.conv_dw_repadapter"
    ]
    (step,) = lowered.result.steps
    assert "zeros beyond the edge" in step.waived["lowers_exactly"]["blocks[0].conv_dw"]


def test_a_layer_without_bias_gets_one() -> None:
    model = VisionTransformer(
        img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=5, qkv_bias=False
    )
    lowered = lowers(model, "insert repadapter() at blocks[*].attn.qkv\n")
    assert "blocks.0.attn.qkv.bias" in lowered.module.state_dict()


def test_a_norm_in_the_same_module_is_scaled_before_it() -> None:
    """The module that the norm's output goes into is in front of the layer, not behind the norm."""
    at = "blocks[*].attn.qkv"
    clauses = f"insert repadapter() at {at}", "insert ssf() at blocks[*].norm1"
    found = []
    for order in (clauses, clauses[::-1]):
        torch.manual_seed(0)
        model = VisionTransformer(
            img_size=16,
            patch_size=8,
            embed_dim=16,
            depth=2,
            num_heads=2,
            num_classes=5,
            block_fn=ParallelScalingBlock,
        )
        lowered = lowers(model, "\n".join(order) + "\n")
        assert not lowered.result.editor.insertions
        found.append(lowered.module(torch.ones(1, 3, 16, 16)))
    torch.testing.assert_close(*found)


def test_where_something_beside_it_stays_it_stays_too() -> None:
    """The adapter of `proj` reads what RepAdapter yields; folded, only what it reads is there."""
    clauses = (
        "insert adapter(hidden=3) at blocks[0].attn.proj",
        "insert repadapter() at blocks[0].attn.proj",
    )
    for order in (clauses, clauses[::-1]):
        lowered = lowers(vit(), "\n".join(order) + "\n")
        assert {i.pass_name for i in lowered.result.editor.insertions} == {"adapter", "repadapter"}
        waived = [step.waived.get("lowers_exactly") for step in lowered.result.steps]
        assert {
            "blocks[0].attn.proj": "'blocks.0.attn.proj_adapter' is beside the layer, and stays"
        } in waived


def test_the_printed_model_calls_it_in_front_of_the_layer() -> None:
    text = vr.apply(f"insert repadapter(hidden=4) at {BLOCK}\n", vit()).source.text
    assert (
        "        x = self.fc1_repadapter(x)\n        return self.fc2(self.act(self.fc1(x)))\n"
        in text
    )
