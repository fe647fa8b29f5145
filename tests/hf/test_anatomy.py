"""Sites of Mask2Former: pixel decoder, queries, levels, layers, predictions."""

from __future__ import annotations

from functools import cache

import pytest
import torch

import vitrewrite as vr
from tests.cli.invoke import invoke
from tests.hf.planned import planned
from tests.hf.zoo import ZOO
from vitrewrite.anatomy import Anatomy, analyse
from vitrewrite.anatomy.decoder import Decoder, PixelDecoder
from vitrewrite.tracing import trace

pytestmark = pytest.mark.xdist_group("hf-anatomy")  # captured models, made once

MODULE = "model.transformer_module"
PIXELS = "model.pixel_level_module.decoder"


@cache
def anatomy(name: str) -> Anatomy:
    member = ZOO[name]
    with torch.device("meta"):
        model = member.build().to("meta")
    return analyse(trace(model, torch.zeros(1, 3, *member.sizes[0])))


def decoder(name: str = "mask2former-r50") -> Decoder:
    found = anatomy(name).decoder
    assert found is not None
    return found


def pixels(name: str = "mask2former-r50") -> PixelDecoder:
    found = anatomy(name).pixel_decoder
    assert found is not None
    return found


def test_queries() -> None:
    queries = decoder().queries
    assert queries.content == f"{MODULE}.queries_features.weight"
    assert queries.position == f"{MODULE}.queries_embedder.weight"
    assert (queries.count, queries.dim) == (6, 32)


def test_levels_are_shared_by_layers() -> None:
    levels = decoder().levels
    assert [level.layers for level in levels] == [(0, 3, 6), (1, 4, 7), (2, 5, 8)]
    assert [level.grid for level in levels] == [(2, 2), (4, 4), (8, 8)]
    assert {level.embedding for level in levels} == {f"{MODULE}.level_embed.weight"}
    places = [level.features for level in levels] + [level.position for level in levels]
    assert len(set(places)) == 6
    assert {p and p.unit for p in places} == {MODULE}


def test_nine_layers() -> None:
    layers = decoder().layers
    assert [layer.level for layer in layers] == [0, 1, 2] * 3
    for index, layer in enumerate(layers):
        unit = f"{MODULE}.decoder.layers.{index}"
        assert layer.unit == unit
        assert layer.self_attn is not None
        assert layer.ffn is not None
        assert layer.cross_attn.heads == layer.self_attn.heads == 4
        assert [s.role.removeprefix(f"{layer.role}.") for s in layer.linears] == [
            "cross_attn.q", "cross_attn.k", "cross_attn.v", "cross_attn.proj", "self_attn.q",
            "self_attn.k", "self_attn.v", "self_attn.proj", "ffn.fc1", "ffn.fc2",
        ]  # fmt: skip
        assert [s.path.removeprefix(f"{unit}.") for s in layer.linears] == [
            "cross_attn.q", "cross_attn.k", "cross_attn.v", "cross_attn.out_proj",
            "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj",
            "fc1", "fc2",
        ]  # fmt: skip
        packed = [s for s in layer.linears if s.rows]
        assert [s.rows for s in packed] == [(0, 32), (32, 64), (64, 96)]
        assert {s.weight for s in packed} == {f"{unit}.cross_attn.in_proj_weight"}
        names = ("cross_attn_layer_norm", "self_attn_layer_norm", "final_layer_norm")
        assert layer.norms == tuple(f"{unit}.{n}" for n in names)


@pytest.mark.parametrize("name", ["mask2former-r50", "mask2former-swin"])
def test_one_prediction_before_the_first_layer_and_one_behind_each(name: str) -> None:
    found = decoder(name).predictions
    assert [p.after for p in found] == [None, *range(9)]
    assert [p.masks_layer for p in found] == [*range(9), None]
    assert {p.norm for p in found} == {f"{MODULE}.decoder.layernorm"}
    assert [p.returned for p in found] == [False] * 9 + [True]
    assert [p.classes for p in found] == [False] * 9 + [True]
    head = [f"{MODULE}.decoder.mask_predictor.mask_embedder.{i}.0" for i in range(3)]
    assert [s.path for s in decoder(name).mask_head] == head


def test_auxiliary_outputs_are_returned_predictions() -> None:
    found = decoder("mask2former-aux").predictions
    assert all(p.returned and p.classes for p in found)
    assert len(found) == 10
    class_head = decoder("mask2former-aux").class_head
    assert class_head is not None
    assert class_head.path == "class_predictor"


def test_mask_features_come_from_the_pixel_decoder() -> None:
    place = decoder().mask_features
    assert place is not None
    assert (place.unit, place.node) == (PIXELS, "mask_projection")


def test_pixel_decoder() -> None:
    found = pixels()
    assert [level.grid for level in found.levels] == [(2, 2), (4, 4), (8, 8)]
    assert [level.projection for level in found.levels] == [
        f"{PIXELS}.input_projections.{i}.0" for i in range(3)
    ]
    positions = [level.position for level in found.levels]
    assert len(set(positions)) == 3
    assert None not in positions
    assert [layer.unit for layer in found.layers] == [
        f"{PIXELS}.encoder.layers.{i}" for i in (0, 1)
    ]
    for layer in found.layers:
        assert layer.mlp is not None
        assert len(layer.linears) == 6


def test_blocks_are_those_of_the_backbone() -> None:
    found = anatomy("mask2former-swin")
    assert [len(stage) for stage in found.stages] == [2, 1, 2, 1]
    assert all(b.attn is not None and ".encoder." in str(b.unit) for b in found.blocks)
    assert not any(".decoder." in str(b.unit) for b in found.blocks)


def test_other_models_have_no_decoder() -> None:
    for name in ("vit", "segformer"):
        assert anatomy(name).decoder is None
        assert anatomy(name).pixel_decoder is None


def test_every_matrix_has_a_role_and_all_roles_differ() -> None:
    found = anatomy("mask2former-r50")
    roles = [s.role for s in found.linears]
    assert len(set(roles)) == len(roles)
    assert not [r for r in roles if r.startswith("linear[")]
    assert {r for r, _ in found.roles()} >= set(roles)


def test_sites_are_printed() -> None:
    shown = invoke("sites", "hf:mask2former-r50").out
    assert "decoder.layers[0:9]" in shown
    assert "decoder.levels[2]          64 x 64, with position, read by layers 2, 5, 8" in shown
    assert "cross_attn (8 heads: q k v" in shown
    assert "10, 9 of them mask the next layer" in shown
    assert max(map(len, shown.splitlines())) <= 100


@pytest.mark.parametrize(
    ("selector", "count"),
    [
        ("decoder.layers[*].cross_attn.{q, k, v}", 27),
        ("decoder.layers[0:3].self_attn.q + decoder.layers[3].ffn.{fc1, fc2}", 5),
        ("every linear in decoder.layers[4]", 10),
        ("decoder.mask_head", 3),
        ("pixel_decoder.layers[*].mlp.fc1", 2),
    ],
)
def test_selectors(selector: str, count: int) -> None:
    plan = planned(f"insert lora(rank=2) at {selector}\n")
    assert len(plan.steps[0].sites) == count


def test_the_selector_of_the_class_head() -> None:
    member = ZOO["mask2former-r50"]
    example = torch.zeros(1, 3, *member.sizes[0])
    spec = "insert lora(rank=2) at decoder.class_head\n"
    assert len(vr.plan(spec, member.build(), example=example).steps[0].sites) == 1


def test_a_layer_that_is_not_there() -> None:
    for selector, code in (("decoder.layers[9].ffn.fc1", "VR304"), ("decoder.layer.ffn", "VR301")):
        with pytest.raises(vr.VitrewriteError, match=code):
            planned(f"insert lora(rank=2) at {selector}\n")
    with pytest.raises(vr.VitrewriteError, match="VR406"):
        planned("insert lora(rank=2) at decoder.queries\n")
