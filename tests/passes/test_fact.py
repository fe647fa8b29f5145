"""The `fact` pass: the authors' numbers, formulas, properties, bad input, composition."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer

import vitrewrite as vr
from tests import goldens
from tests.lowering.by_formula import by_formula
from tests.lowering.models import fill, vit
from tests.models import spread, tiny_vit
from vitrewrite.rewrite.rewritten import Rewritten

EVERY = "every linear in blocks"
PAPER = f"insert fact(rank=8, scale=0.5, dropout=0) at {EVERY}\ntrain head\n"


def golden_name(name: str) -> str:
    """`blocks.0.attn.qkv.fact.S_q` is `blocks.0.q` in the case, `fact.U` is `U`."""
    if name.startswith("fact."):
        return name.removeprefix("fact.")
    path, _, tensor = name.partition(".fact.S_")
    return f"blocks.{path.split('.')[1]}.{tensor}" if tensor else name


def test_golden_outputs_merged_weights_and_gradients() -> None:
    case = goldens.case("fact-tt")
    base = case.base()
    case.close(base(case.tensors["input"]), "output_base")
    rewritten = vr.apply(PAPER, base)
    for name, tensor in rewritten.delta().items():
        if "fact." in name:
            tensor.copy_(case.tensors[f"method.{golden_name(name)}"])
    with torch.no_grad():
        case.close(rewritten.module.eval()(case.tensors["input"]), "output")
        lowered = vr.lower(rewritten)
        case.close(lowered.module(case.tensors["input"]), "output_merged")
    state = lowered.module.state_dict()
    assert state.keys() == base.state_dict().keys()
    case.merged_close(state, 16)
    case.gradients_close({golden_name(k): v for k, v in case.gradients_of(rewritten).items()})


@pytest.mark.parametrize("ratio", [1, 4])
@pytest.mark.parametrize("form", ["tt", "tk"])
@torch.no_grad()
def test_the_forward_is_that_of_the_card(form: str, ratio: int) -> None:
    def model() -> Any:
        torch.manual_seed(0)
        return spread(
            VisionTransformer(
                img_size=16,
                patch_size=8,
                embed_dim=16,
                depth=3,
                num_heads=2,
                num_classes=5,
                mlp_ratio=ratio,
            )
        ).eval()

    rewritten = fill(vr.apply(f"insert fact(rank=5, form={form}, scale=0.3) at {EVERY}\n", model()))
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    target = model()
    delta = rewritten.delta()
    by_formula(target, delta, 0.3, ratio)
    expected = target(x)
    assert (expected - rewritten.base(x)).abs().max() > 1e-2
    torch.testing.assert_close(rewritten.module.eval()(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vr.lower(rewritten).module(x), expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=5)
@given(data=st.data(), seed=st.integers(0, 99))
def test_properties_over_random_vits(data: st.DataObject, seed: int) -> None:
    model = data.draw(tiny_vit())
    depth, hidden = len(model.blocks), model.blocks[0].mlp.fc1.out_features
    rank = data.draw(st.integers(1, 16), label="rank")
    form = data.draw(st.sampled_from(["tt", "tk"]), label="form")
    clause = f"insert fact(rank={rank}, form={form}) at {EVERY}\n"
    rewritten = vr.apply(clause, model, seed=seed)
    pieces = (4 + 2 * hidden // 16) * depth
    own = pieces * rank**2 if form == "tt" else rank**3 + rank * pieces
    assert rewritten.report["params"]["trainable"] == 2 * 16 * rank + own
    vr.verify(rewritten, graphs=False)
    again = vr.apply(clause, model, seed=seed)
    for name, tensor in rewritten.delta().items():
        assert torch.equal(tensor, again.delta()[name])


def test_initial_values() -> None:
    delta = vr.apply(PAPER, goldens.case("fact-tt").base()).delta()
    assert not delta["fact.V"].any()
    for name, fan_in in (("fact.U", 48), ("blocks.0.attn.qkv.fact.S_k", 8),
                         ("blocks.1.mlp.fc2.fact.S_fc2", 32)):  # fmt: skip
        assert 0.8 < delta[name].abs().max() * math.sqrt(fan_in) <= 1
    tucker = f"insert fact(rank=8, form=tk) at {EVERY}\n"
    delta = vr.apply(tucker, goldens.case("fact-tt").base()).delta()
    assert sorted(delta) == ["fact.C", "fact.P", "fact.U", "fact.V"]
    assert 0.9 < delta["fact.C"].abs().max() / math.sqrt(6 / 128) <= 1
    assert 0.8 < delta["fact.P"].abs().max() / math.sqrt(6 / (8 + 48)) <= 1


def test_counts_of_the_card_on_vit_base() -> None:
    for rank, count in ((16, 61_440), (4, 8_448)):
        measures = vr.plan("fact", "vit_base", rank=rank).measures
        assert measures.params.trainable_without_head == count
        assert measures.macs_lowered == measures.macs_base == 17_563_828_224
    for rank, count in ((32, 86_528),):
        spec = f"insert fact(form=tk, rank={rank}) at {EVERY}\n"
        assert vr.plan(spec, "vit_base").measures.params.trainable == count


def test_the_code_of_q_k_and_v_is_computed_once() -> None:
    """U x once, S U x and V once for each matrix."""
    for sites, matrices in (("blocks[*].attn.qkv", 3), ("blocks[*].attn.{q, k, v}", 3)):
        measures = vr.plan(f"insert fact(rank=8) at {sites}\n", "vit_base").measures
        once = 197 * (768 * 8 + matrices * (8 * 8 + 8 * 768))
        assert measures.macs - measures.macs_base == 12 * once


def test_factors_are_held_once_and_passed_down() -> None:
    rewritten = vr.apply(PAPER, goldens.case("fact-tt").base())
    names = [n for n in rewritten.module.state_dict() if n.endswith((".U", ".V"))]
    assert names == ["fact_factors.U", "fact_factors.V"]
    text = rewritten.source.text
    assert "U, V = self.fact_factors()\n        for block in self.blocks:\n" in text
    assert "code = F.linear(x, U)\n        qkv = self.qkv_fact(code, self.qkv(x), V)\n" in text
    assert "code = F.linear(x.unflatten(-1, (4, 48)), U).flatten(-2)\n" in text


def test_dropout_acts_in_training_only() -> None:
    rewritten = fill(vr.apply(f"insert fact(rank=4, dropout=0.5) at {EVERY}\n", vit()))
    x = torch.randn(2, 3, 16, 16)
    assert not torch.equal(rewritten.module.train()(x), rewritten.module(x))
    assert torch.equal(rewritten.module.eval()(x), rewritten.module(x))


@torch.no_grad()
def lowers(rewritten: Rewritten, size: int = 16) -> None:
    """What was filled folds, and nothing is left of it."""
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    result, lowered = fill(rewritten).module.eval()(x), vr.lower(rewritten)
    assert (result - rewritten.base(x)).abs().max() > 1e-3
    torch.testing.assert_close(lowered.module(x), result, rtol=1e-4, atol=2e-5)
    assert not lowered.result.editor.insertions
    assert lowered.module.state_dict().keys() == rewritten.base.state_dict().keys()


@pytest.mark.parametrize("form", ["tt", "tk"])
def test_rows_of_a_fused_layer_that_are_not_named_stay(form: str) -> None:
    rewritten = vr.apply(f"insert fact(rank=3, form={form}) at blocks[*].attn.{{q, v}}\n", vit())
    lowers(rewritten)
    base, lowered = rewritten.base.state_dict(), vr.lower(rewritten).module.state_dict()
    key = "blocks.1.attn.qkv.weight"
    assert torch.equal(base[key][16:32], lowered[key][16:32])
    assert not torch.equal(base[key][:16], lowered[key][:16])


def test_two_clauses_have_factors_of_their_own() -> None:
    text = "insert fact(rank=3) at blocks[*].attn.qkv\ninsert fact(rank=5) at blocks[*].mlp.fc1\n"
    rewritten = vr.apply(text, vit())
    shapes = {k: tuple(v.shape) for k, v in rewritten.delta().items() if k.endswith(".U")}
    assert shapes == {"fact.U": (3, 16), "fact_factors2.fact.U": (5, 16)}
    lowers(rewritten)
    keys = vr.lower(rewritten).report["keys"]
    assert keys["fact_factors.U"]["to"] == [f"blocks.{i}.attn.qkv.weight" for i in range(3)]


def test_a_rank_for_each_site() -> None:
    rewritten = vr.apply("insert fact(rank=[3, 5, 3]) at blocks[*].mlp.fc2\n", vit())
    ranks = [v.shape[0] for k, v in rewritten.delta().items() if k.endswith(".U")]
    assert sorted(ranks) == [3, 5]
    lowers(rewritten)


def test_blocks_keep_their_columns_when_others_are_dropped() -> None:
    rewritten = vr.apply(f"insert fact(rank=4, form=tk) at {EVERY}\ndrop blocks[1]\n", vit())
    first = [m.first for m in rewritten.inserted("fact") if hasattr(m, "first")]
    assert sorted(set(first)) == [0, 24]  # type: ignore[type-var]
    assert rewritten.delta()["fact.P"].shape == (4, 36)
    assert not vr.lower(fill(rewritten)).result.editor.insertions


def test_a_stage_of_one_width_owns_its_factors() -> None:
    torch.manual_seed(0)
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=56, embed_dim=16, depths=(1, 2), num_heads=(1, 2)
    )
    rewritten = vr.apply("insert fact(rank=4) at every linear in stages[1].blocks\n", model)
    assert rewritten.delta()["layers.1.fact.U"].shape == (4, 32)
    lowers(rewritten, 56)


# -- bad input ------------------------------------------------------------------------------------


def odd(**options: Any) -> Any:
    return VisionTransformer(
        img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=5, **options
    )


BAD = [
    ("rank=17", EVERY, "", "VR403", "rank 17 is above the width 16"),
    ("form=tensor", EVERY, "", "VR209", "form"),
    ("", "head", "", "VR410", "it lies in no block"),
    ("", "blocks[0].norm1", "", "VR406", "attaches to linear"),
    ("", EVERY, "swin_tiny_patch4_window7_224", "VR410", "widths 96, 192, 384, 768 are no one"),
    ("", EVERY, "eva02_tiny_patch14_224", "VR410", "no place for the gate"),
    ("form=tk", EVERY, "eva02_tiny_patch14_224", "VR410", "1024 hidden units"),
    ("", EVERY, "cait_xxs24_224", "VR410", "places for q, k, v, proj, fc1 and fc2 alone"),
    ("", EVERY, 2.5, "VR410", "its matrix is 40x16, and no whole number of 16x16 ones"),
    ("form=tk", "blocks[*].attn.q", 2.5, "VR410", "40 hidden units are not the same number of"),
    ("rank=4", f"{EVERY}\ninsert fact(rank=4) at blocks[0].attn.q", "", "VR401", "two clauses"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "sites", "model", "code", "message"), BAD)
def test_bad_input_is_one_clear_error(
    options: str, sites: str, model: Any, code: str, message: str
) -> None:
    if isinstance(model, float):
        base = odd(mlp_ratio=model)
    else:
        base = timm.create_model(model) if model else vit()
    with pytest.raises(vr.VitrewriteError) as caught:
        vr.apply(f"insert fact({options or 'rank=4'}) at {sites}\n", base)
    assert caught.value.code == code
    assert message in caught.value.render()


def test_applying_twice_is_detected() -> None:
    once = vr.apply(f"insert fact(rank=4) at {EVERY}\n", vit())
    example = torch.zeros(1, 3, 16, 16)
    with pytest.raises(vr.VitrewriteError, match="VR402"):
        vr.apply("insert fact(rank=4) at blocks[0].attn.qkv\n", once.module, example=example)
    twice = vr.apply("insert lora(rank=2) at blocks[0].attn.q\n", once.module, example=example)
    vr.verify(fill(twice), graphs=False)
