"""DFPQ, HRCA and RCDA on whole models: counts, layers and results in their places, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn
from vitrewrite.passes.dfpq import PositionalQueries
from vitrewrite.passes.hrca import CellSelection
from vitrewrite.passes.rcda import RowColumnAttention

import vitrewrite as vr
from tests.hf.planned import CAPTURES, SHALLOW, planned
from tests.hf.zoo import SEGMENTER, mask2former
from tests.zoo.subject import tensors
from vitrewrite import catalog
from vitrewrite.anatomy import analyse

pytestmark = pytest.mark.xdist_group("hf-faseg")  # captured models, made once

IMAGES = torch.zeros(2, 3, 128, 128)
FASEG = "add dfpq() to decoder\nadd hrca(omega=4) to decoder\n"
RCDA = "add hrca(cells=all) to decoder\nreplace decoder.layers[3, 7].cross_attn with rcda()\n"


def _model(**more: Any) -> nn.Module:
    torch.manual_seed(0)
    return mask2former("resnet", **more)


def _images() -> torch.Tensor:
    return torch.randn(IMAGES.shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def faseg() -> vr.Rewritten:
    """All of FASeg on a model that returns auxiliary predictions."""
    return vr.apply(FASEG, _model(output_auxiliary_logits=True), example=IMAGES)


@pytest.mark.parametrize(
    ("model", "total"), [("hf:mask2former-r50", 50.565e6), ("hf:mask2former-swin-t", 53.923e6)]
)
def test_published_sizes(model: str, total: float) -> None:
    parameters = vr.plan("faseg", model, captures=CAPTURES).measures.params.total
    assert parameters == pytest.approx(total, rel=2e-5)


@pytest.mark.parametrize("name", [s for s in catalog.specs() if s.startswith("faseg")])
def test_claims_of_the_shipped_specs_hold(name: str) -> None:
    claims = vr.plan(name, captures=CAPTURES).claims
    assert claims
    assert all(verdict.holds for verdict in claims), claims


def test_what_each_pass_adds_is_what_the_card_says() -> None:
    steps = vr.plan("faseg", captures=CAPTURES).steps
    assert steps[0].parameters == 131_584 + 4 * 2_560 + 66_304
    assert steps[1].parameters == 4 * 1_578_752 + 256


def test_a_layer_per_round_and_one_at_the_end(faseg: vr.Rewritten) -> None:
    decoder = faseg.result.anatomy.decoder
    assert decoder is not None
    assert [layer.level for layer in decoder.layers] == [0, 1, 2, 3] * 3 + [0]
    assert [layer.whole for layer in decoder.layers] == [True, True, True, False] * 3 + [True]
    grids = [(4, 4), (8, 8), (16, 16), (32, 32)]
    assert [level.grid for level in decoder.levels] == grids


def test_thirteen_auxiliary_predictions_in_order(faseg: vr.Rewritten) -> None:
    seen: list[torch.Tensor] = []
    module = faseg.module.eval()
    norm = module.get_submodule("model.transformer_module.decoder.layernorm")
    handle = norm.register_forward_hook(lambda _m, _i, out: seen.append(out))
    with torch.no_grad():
        out = module(_images())
    handle.remove()
    assert len(out["auxiliary_logits"]) == 13
    head = module.get_submodule("class_predictor")
    classes = [a["class_queries_logits"] for a in out["auxiliary_logits"]]
    for state, found in zip(seen, [*classes, out["class_queries_logits"]], strict=True):
        assert torch.equal(head(state.transpose(0, 1)), found)


def test_the_result_is_the_same_without_auxiliary_predictions(faseg: vr.Rewritten) -> None:
    plain = vr.apply(FASEG, _model(), example=IMAGES)
    plain.module.load_state_dict(faseg.module.state_dict())
    with torch.no_grad():
        with_them, without = (tensors(r.module.eval()(_images())) for r in (faseg, plain))
    assert all(torch.equal(value, with_them[name]) for name, value in without.items())


def test_the_order_of_the_clauses_does_not_matter(faseg: vr.Rewritten) -> None:
    turned = "".join(reversed(FASEG.splitlines(keepends=True)))
    other = vr.apply(turned, _model(output_auxiliary_logits=True), example=IMAGES)
    other.module.load_state_dict(faseg.module.state_dict())
    with torch.no_grad():
        first, second = (tensors(r.module.eval()(_images())) for r in (faseg, other))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_new_layers_are_sites_of_the_other_clauses() -> None:
    spec = (
        FASEG + "insert lora(rank=2) at decoder.layers[*].cross_attn.q\ntrain decoder.layers[3]\n"
    )
    rewritten = vr.apply(spec, _model(**SHALLOW), example=IMAGES)
    assert len(rewritten.report["clauses"][2]["sites"]) == 5
    layer = "model.transformer_module.decoder.hrca_layers.0.fc1.weight"
    assert rewritten.module.get_parameter(layer).requires_grad


@pytest.mark.parametrize(
    "spec",
    [
        FASEG,
        "add dfpq(queries=foreground, pool=foreground) to decoder\n",
        *(
            pytest.param(spec, marks=pytest.mark.slow)
            for spec in (
                "add dfpq(queries=grid_anchor, keys=unchanged) to decoder\n",
                "add dfpq(queries=learned) to decoder\n",
                "add hrca(omega=2, cells=random) to decoder\n",
            )
        ),
        "add dfpq(queries=dynamic_anchor, keys=learned) to decoder\n",
        "add hrca(cells=bilinear) to decoder\n",
        RCDA + "add dfpq() to decoder\n",
    ],
)
def test_every_variant_holds_what_is_claimed(spec: str) -> None:
    spec = spec.replace("cells=bilinear", "cells=bilinear, omega=4")
    options = {} if "layers[3, 7]" in spec else SHALLOW
    rewritten = vr.apply(spec, _model(**options), example=IMAGES)
    for check in vr.verify(rewritten, graphs=False):
        assert check.holds, check


def test_the_delta_is_all_that_was_put_in(faseg: vr.Rewritten) -> None:
    delta = faseg.delta()
    assert sum(t.numel() for t in delta.values()) == faseg.measures.params.trainable
    decoder = "model.transformer_module.decoder"
    assert {f"{decoder}.dfpq.h.0.weight", f"{decoder}.hrca_layers.3.hrca.fc1.weight"} <= set(delta)


@pytest.mark.slow
def test_a_backbone_of_timm() -> None:
    """Through the same graph: transformers wraps it, and the wrapper is traced like all else."""
    backbone = hf.TimmBackboneConfig(  # type: ignore[call-arg]
        backbone="resnet18", use_pretrained_backbone=False, out_indices=(1, 2, 3, 4)
    )
    torch.manual_seed(0)
    config = hf.Mask2FormerConfig(backbone_config=backbone, **SEGMENTER)
    model = hf.Mask2FormerForUniversalSegmentation(config).eval()
    captured = vr.capture(model, IMAGES)
    with torch.no_grad():
        expected, found = tensors(model(_images())), tensors(captured(_images()))
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    for check in vr.verify(vr.apply(FASEG, model, example=IMAGES), graphs=False):
        assert check.holds, check


def test_captured_again_it_has_the_same_layers_and_outputs(faseg: vr.Rewritten) -> None:
    again = vr.capture(faseg.module, IMAGES)
    found, known = analyse(again).decoder, faseg.result.anatomy.decoder
    assert found is not None
    assert known is not None
    assert [a.level for a in found.layers] == [a.level for a in known.layers]
    with torch.no_grad():
        first, second = (tensors(m.eval()(_images())) for m in (faseg.module, again))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_another_size_of_image(faseg: vr.Rewritten) -> None:
    with torch.no_grad():
        out = faseg.module.eval()(torch.randn(1, 3, 128, 192))
    assert out["masks_queries_logits"].shape[2:] == (32, 48)
    with pytest.raises(ValueError, match="sides must be multiples of 32"):
        faseg.module.eval()(torch.randn(1, 3, 64, 32))


def test_gathered_pixels_are_the_windows_of_the_partition() -> None:
    score = torch.rand(3, 8)  # cells of 4x4 pixels on a map of 8x16
    pixels = CellSelection(omega=2).pixels(score, 8, 16)
    windows = torch.arange(128).view(2, 4, 4, 4).transpose(1, 2).reshape(8, 16)
    best = score.argsort(dim=1, descending=True)[:, :4]
    assert torch.equal(pixels, windows[best].flatten(1))


def test_all_cells_are_all_pixels_in_another_order() -> None:
    keys, positions = torch.randn(64, 2, 8), torch.randn(64, 2, 8)
    attention, like = torch.rand(2, 5, 4), torch.empty(2, 1, 8, 8)
    chosen, where = CellSelection(omega=1)(attention, keys, positions, like)
    for made, given in ((chosen, keys), (where, positions)):
        assert torch.equal(made.sort(0).values, given.sort(0).values)


def test_rows_and_columns_are_an_outer_product() -> None:
    torch.manual_seed(0)
    module = RowColumnAttention(8, 2)
    query, key, value = torch.randn(3, 2, 8), torch.randn(24, 2, 8), torch.randn(24, 2, 8)
    tall, wide = torch.empty(2, 1, 6, 4), torch.empty(2, 1, 4, 6)
    for like, size in ((tall, (6, 4)), (wide, (4, 6))):
        grid = key.view(*size, 2, 8)
        a_x = module.weights(module.q_x(query), module.k_x(grid.mean(0)))
        a_y = module.weights(module.q_y(query), module.k_y(grid.mean(1)))
        both = (a_y[..., None] * a_x[..., None, :]).flatten(3)
        v = module.split(value @ module.v.weight.T)
        expected = (both @ v).permute(2, 0, 1, 3).flatten(2) @ module.out.weight.T
        torch.testing.assert_close(module(query, key, value, like), expected)


def test_anchors_encode_where_the_attention_is() -> None:
    module = PositionalQueries(8, anchor=True)
    like = torch.empty(1, 1, 2, 2)
    points = torch.tensor([[[0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75]]])
    assert torch.equal(torch.eye(4)[None] @ module.centres(like), points)
    assert module.encoded(points).shape == (1, 4, 8)


def test_replaced_attention_is_gone() -> None:
    plan = planned("replace decoder.layers[2].cross_attn with rcda()\n")
    assert plan.steps[0].parameters == 2 * (32 * 32 + 32)
    assert any("masks block no pixel" in w for w in plan.warnings)


@pytest.mark.parametrize("name", [s for s in catalog.specs() if s.startswith("faseg")])
def test_ablations_train_a_small_model_as_a_whole(name: str) -> None:
    passes = [step.use.name for step in vr.parse(name).clauses if step.use is not None]
    smaller = {"hrca.omega": 4} if "hrca" in passes else {}
    plan = planned(name, **smaller)
    assert plan.measures.params.trainable == plan.measures.params.total
    layers = 9 if "hrca" not in passes else 13
    decoder = plan.anatomy.decoder
    assert decoder is not None
    assert len(decoder.layers) == layers


@pytest.mark.parametrize(
    ("spec", "size", "message"),
    [
        ("add hrca() to decoder", 128, "one of 32 cells leaves none of 16"),
        ("add hrca(omega=0) to decoder", 128, "omega"),
        ("add dfpq(threshold=2) to decoder", 128, "threshold"),
        ("add hrca(omega=1) to decoder", 80, "multiples of 32"),
        ("replace decoder.layers[0].cross_attn with rcda()", (64, 32), "one row or column"),
        ("replace decoder.layers[0].self_attn with rcda()", 128, "attends to no feature map"),
        ("add hrca() to decoder.layers[0]", 128, "hrca attaches to decoder"),
    ],
)
def test_bad_input(spec: str, size: int | tuple[int, int], message: str) -> None:
    sides = (size, size) if isinstance(size, int) else size
    with pytest.raises(vr.VitrewriteError, match=message):
        planned(spec + "\n", sides)


@pytest.mark.parametrize(("queries", "swapped"), [("focus", False), ("focus", True),
                                                  ("grid_anchor", False)])  # fmt: skip
def test_row_and_column_attention_excludes_dynamic_queries(queries: str, swapped: bool) -> None:
    clauses = [
        f"add dfpq(queries={queries}) to decoder",
        "replace decoder.layers[2].cross_attn with rcda()",
    ]
    spec = "\n".join(reversed(clauses) if swapped else clauses)
    with pytest.raises(
        vr.VitrewriteError, match="VR412 dfpq and rcda exclude each other"
    ) as caught:
        planned(f"{spec}\n")
    assert "'decoder.layers[2]'" in str(caught.value)
    assert f"other clause: <text>:{1 if swapped else 2}: {clauses[1]}" in str(caught.value)


def test_without_dynamic_queries_they_go_together() -> None:
    spec = "add dfpq(queries=learned) to decoder\n"
    spec += "replace decoder.layers[2].cross_attn with rcda()\n"
    planned(spec)


def test_a_model_without_a_decoder() -> None:
    with pytest.raises(vr.VitrewriteError, match="has no site 'decoder'"):
        vr.plan("add dfpq() to decoder\n", "vit_tiny_patch16_224")


DFPQ, HRCA = "add dfpq() to decoder", "add hrca(omega=2) to decoder"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_queries": 0, **SHALLOW}, "it has no queries"),
        ({"pre_norm": True, **SHALLOW}, "norms in front of attention, not behind"),
        ({"decoder_layers": 2}, "it has one layer only"),
        ({"decoder_layers": 3}, "attend to 2 of the three feature maps"),
    ],
)
def test_decoders_that_are_not_as_published(options: dict[str, Any], message: str) -> None:
    for clause in (DFPQ, HRCA):
        with pytest.raises(vr.VitrewriteError, match=f"VR410 .*{message}"):
            planned(f"{clause}\n", **options)


def test_row_and_column_attention_needs_queries() -> None:
    spec = "replace decoder.layers[0].cross_attn with rcda()\n"
    with pytest.raises(vr.VitrewriteError, match=r"VR410 .*its decoder has no queries"):
        planned(spec, num_queries=0, **SHALLOW)


@pytest.mark.parametrize("sides", [(80, 80), (96, 80), (100, 128)])
def test_sides_of_images(sides: tuple[int, int]) -> None:
    for clause in (DFPQ, HRCA):
        with pytest.raises(vr.VitrewriteError, match=r"VR410 .*sides .* multiples of 32"):
            planned(f"{clause}\n", sides, **SHALLOW)


def test_widths_that_are_no_groups_of_32() -> None:
    """Up to 5.20 transformers kept what is between the widths in a list: no part of the model."""
    model: Any = _model(**SHALLOW)
    listed = isinstance(model.model.transformer_module.input_projections, list)
    message = r"VR603 .*elsewhere" if listed else r"VR403 48 channels are not groups of 32"
    with pytest.raises(vr.VitrewriteError, match=message):
        planned(f"{DFPQ}\n", feature_size=64, hidden_dim=48, **SHALLOW)


def _fused(*layers: int) -> nn.Module:
    """A model in which some cross attentions yield no weights."""
    model: Any = _model(**SHALLOW)
    for number in layers:
        model.model.transformer_module.decoder.layers[number].cross_attn.add_zero_attn = True
    return model


def test_attention_without_weights() -> None:
    for clause in (DFPQ, HRCA):
        with pytest.raises(vr.VitrewriteError, match=r"layers\.1\.cross_attn' is one fused call"):
            vr.plan(f"{clause}\n", _fused(1), example=IMAGES)
    with pytest.raises(vr.VitrewriteError, match=r"layers\.0\.cross_attn is one fused call"):
        vr.plan(f"{DFPQ}\n", _fused(*range(3)), example=IMAGES)


class TokenLayer(nn.Module):
    """Queries attend to tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = nn.MultiheadAttention(32, 2), nn.LayerNorm(32)

    def forward(self, x: torch.Tensor, position: torch.Tensor, tokens: torch.Tensor) -> Any:
        return self.norm(x + self.attention(x + position, tokens, tokens)[0])


class TokenDecoder(nn.Module):
    """Queries that read what a linear layer makes of patches, which is no map."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.mix = nn.Conv2d(3, 32, 16, stride=16), nn.Linear(64, 9)
        self.queries, self.position = (nn.Parameter(torch.randn(5, 1, 32)) for _ in range(2))
        self.layers = nn.ModuleList(TokenLayer() for _ in range(3))
        self.head = nn.Linear(32, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.mix(self.patches(images).flatten(2)).permute(2, 0, 1)
        x = self.queries.expand(-1, images.shape[0], -1)
        for layer in self.layers:
            x = layer(x, self.position, tokens)
        return self.head(x)


def test_keys_that_are_no_map() -> None:
    model = TokenDecoder()
    with pytest.raises(vr.VitrewriteError, match=r"VR410 rcda at .*it is no feature map"):
        vr.plan("replace decoder.layers[1].cross_attn with rcda()\n", model, example=IMAGES)
    for clause in (DFPQ, HRCA):
        with pytest.raises(vr.VitrewriteError, match=r"attend to 1 of the three feature maps"):
            vr.plan(f"{clause}\n", model, example=IMAGES)


def test_positions_of_keys_reach_the_pixel_decoder_too() -> None:
    model = _model(**SHALLOW)
    with torch.no_grad():  # else no position decides where the pixel decoder looks
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    rewritten = vr.apply("add dfpq() to decoder\n", model, example=IMAGES)
    module, seen = rewritten.module.eval(), []
    decoder = module.get_submodule("model.pixel_level_module.decoder")
    handle = decoder.register_forward_hook(lambda _m, _i, out: seen.append(tensors(out)))
    with torch.no_grad():
        for _ in range(2):
            module(_images())
            for name, tensor in rewritten.delta().items():
                if "dfpq_position" in name:
                    tensor.add_(1)
    handle.remove()
    assert not any(torch.equal(value, seen[1][name]) for name, value in seen[0].items())
