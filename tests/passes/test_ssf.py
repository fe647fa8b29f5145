"""The `ssf` pass: the authors' numbers, properties, bad input, lowering, composition."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import vitrewrite as vr
from tests import goldens
from tests.lowering.models import fill, vit
from tests.models import DEAR, spread, tiny_vit
from vitrewrite.rewrite.rewritten import Rewritten

PAPER = (
    "insert ssf() at every conv in patch_embed + blocks[*].{norm1, norm2} + norm\n"
    "insert ssf() at blocks[*].attn.{qkv, proj} + blocks[*].mlp.{fc1, fc2}\n"
    "train head\n"
)
ALL = "insert ssf() at every linear + every norm + every conv\n"


def golden_names(rewritten: Rewritten) -> dict[str, str]:
    return {name: name.replace(".ssf.", ".") for name in rewritten.delta()}


def test_golden_outputs_merged_weights_and_gradients() -> None:
    case = goldens.case("ssf")
    rewritten = vr.apply(PAPER, case.base())
    names = golden_names(rewritten)
    for name, tensor in rewritten.delta().items():
        if ".ssf." in name:
            tensor.copy_(case.tensors[f"method.{names[name]}"])
    assert sum(k.startswith("method.") for k in case.tensors) == len(names) - 2
    with torch.no_grad():
        case.close(rewritten.module.eval()(case.tensors["input"]), "output")
    lowered = vr.lower(rewritten)
    with torch.no_grad():
        case.close(lowered.module(case.tensors["input"]), "output_merged")
    state = lowered.module.state_dict()
    assert state.keys() == rewritten.base.state_dict().keys()
    case.merged_close(state, 2 * 26)
    case.gradients_close({names[k]: v for k, v in case.gradients_of(rewritten).items()})


# -- properties -----------------------------------------------------------------------------------


def shifted(model: nn.Module, delta: dict[str, torch.Tensor]) -> nn.Module:
    """The user's own model with every site scaled and shifted by a hook."""

    def hook(scale: torch.Tensor, shift: torch.Tensor) -> Any:
        def changed(module: nn.Module, _: Any, y: torch.Tensor) -> torch.Tensor:
            shape = (-1, 1, 1) if type(module).__name__.endswith("2d") else (-1,)
            return y * scale.view(shape) + shift.view(shape)

        return changed

    for name in [n.removesuffix(".ssf.scale") for n in delta if n.endswith(".ssf.scale")]:
        pair = delta[f"{name}.ssf.scale"], delta[f"{name}.ssf.shift"]
        model.get_submodule(name).register_forward_hook(hook(*(t.clone() for t in pair)))
    return model.eval()


FAMILIES = {
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 2, 1)},
    "convnext_atto": {"depths": (1, 1, 1, 1)},
    "deit3_small_patch16_224": {"depth": 2},
    "xcit_nano_12_p16_224": {"depth": 1},
    "levit_128s": {},
}


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_behind_every_layer_of_other_families(name: str) -> None:
    """Norms over positions and over channels of maps, batch norms, strided and depthwise ones."""
    torch.manual_seed(0)
    model = spread(timm.create_model(name, num_classes=5, **FAMILIES[name])).eval()
    rewritten = fill(vr.apply(ALL, model))
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    result = rewritten.module.eval()(x)
    lowered = vr.lower(rewritten)
    scale = float(result.abs().max())
    assert not lowered.result.editor.insertions
    torch.testing.assert_close(lowered.module(x), result, rtol=0, atol=1e-4 * scale)
    expected = shifted(model, rewritten.delta())(x)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5 * scale)


SITES = (
    *("blocks[*].attn.{q, v}", "every linear in blocks", "every norm", "every conv"),
    *("blocks[*].norm1 + norm", "blocks[-1].attn.proj + head"),
)


@DEAR
@given(data=st.data(), seed=st.integers(0, 99))
def test_properties_over_random_vits(data: st.DataObject, seed: int) -> None:
    model = data.draw(tiny_vit())
    sites = data.draw(st.sampled_from(SITES))
    rewritten = vr.apply(f"insert ssf() at {sites}\n", model, seed=seed)
    widths = [len(t) for n, t in rewritten.delta().items() if n.endswith("scale")]
    assert rewritten.report["params"]["trainable"] == 2 * sum(widths)
    vr.verify(rewritten, graphs=False)
    again = vr.apply(f"insert ssf() at {sites}\n", model, seed=seed)
    for name, tensor in rewritten.delta().items():
        assert torch.equal(tensor, again.delta()[name])


def test_initial_values_are_drawn_around_one_and_zero() -> None:
    delta = vr.apply(PAPER, goldens.case("ssf").base(), seed=3).delta()
    for end, mean in (("scale", 1.0), ("shift", 0.0)):
        drawn = torch.cat([t for n, t in delta.items() if n.endswith(f".ssf.{end}")])
        assert abs(float(drawn.mean()) - mean) < 0.002
        assert 0.018 < float(drawn.std()) < 0.022


def test_without_spread_the_model_is_unchanged_at_first() -> None:
    spec = "insert ssf(std=0) at every norm + every linear in blocks\nrequire identity at init\n"
    rewritten = vr.apply(spec, vit())
    checks = vr.verify(rewritten, graphs=False)
    assert any("same output at initialisation" in check.name for check in checks)
    plan = str(vr.plan("insert ssf() at norm\n", vit()))
    assert "not claimed: same_output_at_init (line 1, norm): its scale and shift" in plan


def test_counts_of_the_card_on_vit_base() -> None:
    plan = vr.plan("ssf", "vit_base")
    assert plan.measures.params.trainable_without_head == 205_824
    assert plan.measures.macs_lowered == plan.measures.macs_base == 17_563_828_224


# -- bad input ------------------------------------------------------------------------------------

BAD = [
    ("insert ssf(std=-1) at norm\n", "VR203", "std"),
    ("insert ssf() at blocks[0].attn\n", "VR406", "attaches to linear, norm, conv,"),
    ("insert ssf() at cls_token\n", "VR406", "is a parameter"),
    ("insert ssf() at blocks[0].norm3\n", "VR301", "has no site 'norm3'"),
    ("insert ssf() at norm\ninsert ssf() at every norm\n", "VR401", "two clauses put ssf at"),
    ("insert ssf() at blocks[0].norm1 + every norm in blocks[0]\n", "VR303", "selected twice"),
    ("insert ssf() at every conv in blocks\n", "VR302", "matches nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "code", "message"), BAD, ids=[b[1] + b[2][:12] for b in BAD])
def test_bad_input_is_one_clear_error(spec: str, code: str, message: str) -> None:
    with pytest.raises(vr.VitrewriteError) as caught:
        vr.apply(spec, vit())
    assert caught.value.code == code
    assert message in caught.value.render()


def test_applying_twice_is_detected() -> None:
    once = vr.apply("insert ssf() at blocks[*].norm1\n", vit())
    example = torch.zeros(1, 3, 16, 16)
    with pytest.raises(vr.VitrewriteError, match="VR402"):
        vr.apply("insert ssf() at blocks[0].norm1\n", once.module, example=example)
    twice = vr.apply("insert ssf() at blocks[0].norm2\n", once.module, example=example)
    assert twice.report["params"]["trainable"] == 2 * 16


# -- lowering -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sites", ["blocks[*].attn.{q, v}", "blocks[*].attn.qkv", "every linear"])
@torch.no_grad()
def test_a_layer_without_bias_gets_one(sites: str) -> None:
    torch.manual_seed(0)
    model = spread(
        timm.models.vision_transformer.VisionTransformer(
            img_size=16,
            patch_size=8,
            embed_dim=16,
            depth=2,
            num_heads=2,
            num_classes=5,
            qkv_bias=False,
        )
    ).eval()
    rewritten = fill(vr.apply(f"insert ssf() at {sites}\n", model))
    lowered = vr.lower(rewritten)
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(lowered.module(x), rewritten.module.eval()(x), rtol=1e-4, atol=1e-5)
    assert "blocks.0.attn.qkv.bias" in lowered.module.state_dict()
    keys = lowered.report["keys"]
    owner = "blocks.0.attn.qkv"
    assert keys[f"{owner}_ssf.shift"]["to"] == [f"{owner}.bias", f"{owner}.weight"]
    vr.verify(lowered, graphs=False)


@torch.no_grad()
def test_other_rows_of_a_fused_layer_stay_bit_identical() -> None:
    rewritten = fill(vr.apply("insert ssf() at blocks[*].attn.{q, v}\n", vit()))
    base, lowered = rewritten.base.state_dict(), vr.lower(rewritten).module.state_dict()
    for key in ("blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.bias"):
        q, k, v = (slice(i * 16, i * 16 + 16) for i in range(3))
        assert torch.equal(base[key][k], lowered[key][k])
        assert not torch.equal(base[key][q], lowered[key][q])
    scale = rewritten.delta()["blocks.0.attn.v.ssf.scale"]
    bias = rewritten.delta()["blocks.0.attn.v.ssf.shift"] + scale * base[key][v]
    torch.testing.assert_close(lowered[key][v], bias)


@pytest.mark.parametrize(
    ("model", "site"),
    [
        ("beit_base_patch16_224", "blocks[0].attn.qkv"),  # its bias is joined of three
        ("vit_base_patch16_rope_reg1_gap_256", "blocks[0].norm1"),
    ],
)
def test_where_it_cannot_fold_it_stays_and_the_plan_tells(model: str, site: str) -> None:
    made = timm.create_model(model, depth=1)
    if "rope" in model:
        made.blocks[0].norm1 = nn.RMSNorm(768)
    rewritten = vr.apply(f"insert ssf() at {site}\n", made)
    assert rewritten.report["clauses"][0]["waived"]["lowers_exactly"] == {
        site: "the layer has no scale and shift of its own"
    }
    lowered = vr.lower(rewritten)
    assert [i.pass_name for i in lowered.result.editor.insertions] == ["ssf"]


# -- other clauses beside it ----------------------------------------------------------------------

AT = "blocks[0].mlp.fc2"
TOGETHER = {
    "ssf": f"insert ssf() at {AT} + blocks[0].norm2",
    "lora": f"insert lora(rank=2, dropout=0) at {AT}",
    "adapter": f"insert adapter(hidden=3, dropout=0, drop_path=0) at {AT}",
}


def reference(delta: dict[str, torch.Tensor], names: tuple[str, ...]) -> nn.Module:
    """LoRA in the layer, then scale and shift, then the adapter, whatever the spec's order."""
    model: nn.Module = vit()
    site = "blocks.0.mlp.fc2"
    if "lora" in names:
        update = delta[f"{site}.lora.up"] @ delta[f"{site}.lora.down"]
        model.get_submodule(site).weight.add_(update)
    shifted(model, delta)
    if "adapter" in names:
        down, up = (
            (delta[f"{site}.adapter.{n}.weight"], delta[f"{site}.adapter.{n}.bias"])
            for n in ("down", "up")
        )
        linear = nn.functional.linear
        model.get_submodule(site).register_forward_hook(
            lambda _m, _x, y: y + linear(nn.functional.gelu(linear(y, *down)), *up)
        )
    return model.eval()


@pytest.mark.parametrize("names", [*permutations(("ssf", "lora")), *permutations(TOGETHER)])
@torch.no_grad()
def test_it_acts_on_the_updated_layer_in_every_order(names: tuple[str, ...]) -> None:
    rewritten = fill(vr.apply("\n".join(TOGETHER[n] for n in names) + "\n", vit()))
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    expected = reference(rewritten.delta(), names)(x)
    torch.testing.assert_close(rewritten.module.eval()(x), expected, rtol=1e-4, atol=1e-5)
    lowered = vr.lower(rewritten)
    torch.testing.assert_close(lowered.module(x), expected, rtol=1e-4, atol=1e-5)
    left = [i.pass_name for i in lowered.result.editor.insertions]
    assert left == [n for n in names if n == "adapter"]
    in_order = [n for n in ("lora", "ssf", "adapter") if n in names]
    (order,) = rewritten.report["order"]
    assert [c["clause"].split("(")[0].split()[-1] for c in order["clauses"]] == in_order
    assert order["as_in_spec"] == (list(names) == in_order)
    if names == ("ssf", "lora"):
        assert order["reason"] == "what is beside a layer goes before what is behind it"
