"""What is found on real models; the table was checked against their constructor arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from torch import nn

from vitrewrite.anatomy import Anatomy
from vitrewrite.anatomy.report import to_text
from vitrewrite.anatomy.sites import Linear, Place

Analyse = Callable[[str], Anatomy]
pytestmark = pytest.mark.xdist_group("anatomy")  # captured models, made once


@dataclass(frozen=True)
class Expected:
    name: str
    stages: list[int]  # blocks per stage
    dims: list[int]  # of the last block of each stage
    heads: list[int]  # likewise, 0 without attention
    stream: tuple[str, tuple[str, ...], int, tuple[int, int]]
    around: tuple[str, str | None, list[str]]  # patch embedding, final norm, heads
    units: tuple[str, str]  # of the first and the last block
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name


def vit(
    name: str, dim: int, heads: int, prefix: tuple[str, ...], side: int, **other: Any
) -> Expected:
    extra = sum(4 if p == "reg_token" else 1 for p in prefix)
    stream = "sequence", prefix, side * side + extra, (side, side)
    around = "patch_embed", other.pop("norm", "norm"), other.pop("head", ["head"])
    return Expected(name, [12], [dim], [heads], stream, around, ("blocks.0", "blocks.11"), **other)


TOKEN = ("cls_token",)
MODELS = [
    vit("vit_base_patch16_224", 768, 12, TOKEN, 14),
    vit("vit_small_patch14_dinov2", 384, 6, TOKEN, 37, head=[]),
    vit("vit_small_patch14_reg4_dinov2", 384, 6, ("cls_token", "reg_token"), 37, head=[]),
    vit("vit_base_patch16_siglip_224", 768, 12, (), 14, head=[]),
    vit(
        "deit_base_distilled_patch16_224",
        768,
        12,
        ("cls_token", "dist_token"),
        14,
        head=["head", "head_dist"],
    ),
    vit("deit3_small_patch16_224", 384, 6, TOKEN, 14),
    vit("beit_base_patch16_224", 768, 12, TOKEN, 14, norm="fc_norm"),
    vit("eva02_tiny_patch14_224", 192, 3, TOKEN, 16, norm="fc_norm", head=[]),
    vit("flexivit_small", 384, 6, TOKEN, 15),
    Expected(
        "cait_xxs24_224",
        stages=[24, 2],
        dims=[192, 192],
        heads=[4, 4],
        stream=("sequence", (), 196, (14, 14)),
        around=("patch_embed", "norm", ["head"]),
        units=("blocks.0", "blocks_token_only.1"),
        notes=("cls_token joins the tokens at blocks[24]",),
    ),
    Expected(
        "swin_tiny_patch4_window7_224",
        stages=[2, 2, 6, 2],
        dims=[96, 192, 384, 768],
        heads=[3, 6, 12, 24],
        stream=("nhwc", (), 3136, (56, 56)),
        around=("patch_embed", "norm", ["head.fc"]),
        units=("layers.0.blocks.0", "layers.3.blocks.1"),
    ),
    Expected(
        "swinv2_tiny_window8_256",
        stages=[2, 2, 6, 2],
        dims=[96, 192, 384, 768],
        heads=[3, 6, 12, 24],
        stream=("nhwc", (), 4096, (64, 64)),
        around=("patch_embed", "norm", ["head.fc"]),
        units=("layers.0.blocks.0", "layers.3.blocks.1"),
    ),
    Expected(
        "pvt_v2_b0",
        stages=[2, 2, 2, 2],
        dims=[32, 64, 160, 256],
        heads=[1, 2, 5, 8],
        stream=("sequence", (), 3136, (56, 56)),
        around=("patch_embed", "stages.3.norm", ["head"]),
        units=("stages.0.blocks.0", "stages.3.blocks.1"),
    ),
    Expected(
        "mvitv2_tiny",
        stages=[1, 2, 5, 2],
        dims=[96, 192, 384, 768],
        heads=[1, 2, 4, 8],
        stream=("sequence", (), 3136, (56, 56)),
        around=("patch_embed", "norm", ["head.fc"]),
        units=("stages.0.blocks.0", "stages.3.blocks.1"),
    ),
    Expected(
        "hiera_tiny_224",
        stages=[1, 2, 7, 2],
        dims=[96, 192, 384, 768],
        heads=[1, 2, 4, 8],
        stream=("sequence", (), 3136, (56, 56)),
        around=("patch_embed", "head.norm", ["head.fc"]),
        units=("blocks.0", "blocks.11"),
        notes=(
            "blocks[1]: attends in groups of 64 tokens of unknown shape",
            "blocks[2:4]: attends in groups of 16 tokens of unknown shape",
        ),
    ),
    Expected(
        "crossvit_tiny_240",
        stages=[21],
        dims=[96],
        heads=[3],
        stream=("sequence", ("cls_token_0",), 401, (20, 20)),
        around=("patch_embed.0", None, ["head.0", "head.1"]),
        units=("blocks.0.blocks.0.0", "blocks.2.fusion.1"),
        notes=(
            "blocks of several streams alternate, so there are no stages",
            "there are 2 final norms, one per stream: norm.0, norm.1",
        ),
    ),
    Expected(
        "twins_svt_small",
        stages=[2, 2, 10, 4],
        dims=[64, 128, 256, 512],
        heads=[2, 4, 8, 16],
        stream=("sequence", (), 3136, (56, 56)),
        around=("patch_embeds.0", "norm", ["head"]),
        units=("blocks.0.0", "blocks.3.3"),
    ),
    Expected(
        "convnext_tiny",
        stages=[3, 3, 9, 3],
        dims=[96, 192, 384, 768],
        heads=[0, 0, 0, 0],
        stream=("nchw", (), 3136, (56, 56)),
        around=("stem", "head.norm", ["head.fc"]),
        units=("stages.0.blocks.0", "stages.3.blocks.2"),
    ),
    Expected(
        "xcit_nano_12_p16_224",
        stages=[12, 2],
        dims=[128, 128],
        heads=[4, 4],
        stream=("sequence", (), 196, (14, 14)),
        around=("patch_embed", "norm", ["head"]),
        units=("blocks.0", "cls_attn_blocks.1"),
        notes=("cls_token joins the tokens at blocks[12]",),
    ),
    Expected(
        "tiny_vit_5m_224",
        stages=[2, 2, 6, 2],
        dims=[64, 128, 160, 320],
        heads=[0, 4, 5, 10],
        stream=("nchw", (), 3136, (56, 56)),
        around=("patch_embed", "head.norm", ["head.fc"]),
        units=("stages.0.blocks.0", "stages.3.blocks.1"),
    ),
    Expected(
        "maxvit_tiny_tf_224",
        stages=[6, 6, 15, 6],
        dims=[64, 128, 256, 512],
        heads=[2, 4, 8, 16],
        stream=("nchw", (), 12544, (112, 112)),
        around=("stem", "head.norm", ["head.fc"]),
        units=("stages.0.blocks.0.conv", "stages.3.blocks.1.attn_grid"),
    ),
]
every_model = pytest.mark.parametrize("expected", MODELS, ids=str)


@every_model
def test_trunk(expected: Expected, anatomy: Analyse) -> None:
    found = anatomy(expected.name)
    assert [len(s) for s in found.stages] == expected.stages
    assert [s[-1].dim for s in found.stages] == expected.dims
    heads = [0 if s[-1].attn is None else s[-1].attn.heads for s in found.stages]
    assert heads == expected.heads
    assert (found.blocks[0].unit, found.blocks[-1].unit) == expected.units
    assert found.notes == expected.notes


@every_model
def test_what_is_around_the_trunk(expected: Expected, anatomy: Analyse) -> None:
    found = anatomy(expected.name)
    stream = found.stream
    assert (stream.layout, stream.prefix, stream.tokens, stream.grid) == expected.stream
    assert (found.patch_embed, found.norm, [h.path for h in found.head]) == expected.around


@every_model
def test_every_matrix_is_a_site_once(
    expected: Expected, anatomy: Analyse, model: Callable[[str], nn.Module]
) -> None:
    found = anatomy(expected.name)
    modules = model(expected.name).named_modules()
    layers = {f"{name}.weight" for name, m in modules if isinstance(m, nn.Linear)}
    assert [s.weight for s in found.linears] == list(dict.fromkeys(s.weight for s in found.linears))
    assert {s.weight for s in found.linears} == layers
    roles = [role for role, _ in found.roles()]
    assert len(roles) == len(set(roles))


@every_model
def test_sites_exist(
    expected: Expected, anatomy: Analyse, captured: Callable[[str], nn.Module]
) -> None:
    found, root = anatomy(expected.name), captured(expected.name)

    def check(place: Place | None) -> None:
        if place is not None:
            graph = root.get_submodule(place.unit).template.graph
            assert place.node in {n.name for n in graph.nodes}

    for block in found.blocks:
        for place in (block.input, block.mid, block.output, block.attn and block.attn.core):
            check(place)
        for path in (block.unit, block.norm1, block.norm2):
            assert path is None or root.get_submodule(path) is not None
        assert block.unit is not None
        assert block.input.unit == block.output.unit == block.unit
    for _, site in found.roles():
        if isinstance(site, Linear):
            check(site.call)
            weight = root.get_parameter(site.weight)
            rows = sum(stop - start for start, stop in site.ranges)
            assert (site.out_features, site.in_features) == (rows, weight.shape[1])
            assert site.rows in (None, (site.ranges[0][0], site.ranges[-1][1]))


@every_model
def test_roles_agree_with_timms_own_names(expected: Expected, anatomy: Analyse) -> None:
    """Where timm calls a layer `attn.qkv` it has that role, without the analysis reading names."""
    names = ("attn.qkv", "attn.q", "attn.kv", "attn.k", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2")
    for block in anatomy(expected.name).blocks:
        for site in block.linears:
            name = site.path.removeprefix(f"{block.unit}.")
            assert name not in names or site.role == f"{block.role}.{name}"
        if block.attn is not None and expected.name != "tiny_vit_5m_224":
            assert block.norm1 == f"{block.unit}.norm1"
            assert block.norm2 in (None if block.mlp is None else f"{block.unit}.norm2",)


@every_model
def test_report_is_readable(expected: Expected, anatomy: Analyse) -> None:
    text = to_text(anatomy(expected.name))
    assert max(map(len, text.splitlines())) <= 100
    assert text.isprintable() or "\n" in text


def test_fused_qkv_is_three_slices(anatomy: Analyse) -> None:
    for name in ("vit_base_patch16_224", "beit_base_patch16_224"):
        attn = anatomy(name).blocks[3].attn
        assert attn is not None
        assert attn.qkv is not None
        assert attn.qkv.rows is None
        sites = {s.role: (s.path, s.rows, s.weight) for s in (attn.q, attn.k, attn.v) if s}
        weight = "blocks.3.attn.qkv.weight"
        assert sites == {
            "blocks[3].attn.q": ("blocks.3.attn.q", (0, 768), weight),
            "blocks[3].attn.k": ("blocks.3.attn.k", (768, 1536), weight),
            "blocks[3].attn.v": ("blocks.3.attn.v", (1536, 2304), weight),
        }


def test_separate_q_and_fused_kv(anatomy: Analyse) -> None:
    attn = anatomy("pvt_v2_b0").blocks[2].attn
    assert attn is not None
    assert attn.qkv is None
    rows = [(s.weight, s.rows) for s in (attn.q, attn.k, attn.v) if s]
    kv = "stages.1.blocks.0.attn.kv.weight"
    assert rows == [("stages.1.blocks.0.attn.q.weight", None), (kv, (0, 64)), (kv, (64, 128))]


def test_class_attention_of_cait_has_three_layers(anatomy: Analyse) -> None:
    attn = anatomy("cait_xxs24_224").blocks[24].attn
    assert attn is not None
    found = [s.path for s in (attn.q, attn.k, attn.v, attn.proj) if s]
    assert found == [f"blocks_token_only.0.attn.{n}" for n in ("q", "k", "v", "proj")]


def test_talking_heads_are_layers_without_a_part(anatomy: Analyse) -> None:
    roles = [s.role for s in anatomy("cait_xxs24_224").blocks[0].linears]
    parts = ["attn.qkv", "linear[1]", "linear[2]", "attn.proj", "mlp.fc1", "mlp.fc2"]
    assert roles == [f"blocks[0].{p}" for p in parts]


def test_channel_attention_is_told_apart(anatomy: Analyse) -> None:
    over = [b.attn.over for b in anatomy("xcit_nano_12_p16_224").blocks if b.attn]
    assert over == ["channels"] * 12 + ["tokens"] * 2
    others = (anatomy(m.name) for m in MODELS if m.name != "xcit_nano_12_p16_224")
    assert {b.attn.over for a in others for b in a.blocks if b.attn} == {"tokens"}


@pytest.mark.parametrize(
    ("name", "windows"),
    [
        ("swin_tiny_patch4_window7_224", [(7, 7)] * 10 + [None] * 2),
        ("swinv2_tiny_window8_256", [(8, 8)] * 10 + [None] * 2),
        ("twins_svt_small", [(7, 7), None] * 7 + [None] * 4),
        ("tiny_vit_5m_224", [(7, 7)] * 2 + [None] * 8),
        ("hiera_tiny_224", [(8, 8)] + [None] * 11),
        ("vit_base_patch16_224", [None] * 12),
        ("pvt_v2_b0", [None] * 8),
    ],
)
def test_windows(name: str, windows: list[Any], anatomy: Analyse) -> None:
    assert [b.attn.windows for b in anatomy(name).blocks if b.attn] == windows


def test_blocks_of_one_sum(anatomy: Analyse) -> None:
    for block in anatomy("convnext_tiny").blocks:
        assert block.attn is None is block.mid
        assert block.mlp is not None
        assert block.norm1 == f"{block.unit}.norm"
    first = anatomy("maxvit_tiny_tf_224").blocks[0]
    assert first.linears == ()
    assert first.mlp is None


def test_gated_mlp(anatomy: Analyse) -> None:
    mlp = anatomy("eva02_tiny_patch14_224").blocks[0].mlp
    assert mlp is not None
    assert mlp.gate is not None
    assert mlp.fc1 is not None
    assert (mlp.gate.weight, mlp.gate.rows) == (mlp.fc1.weight, (0, 512))


def test_attention_pool_is_no_block(anatomy: Analyse) -> None:
    found = anatomy("vit_base_patch16_siglip_224")
    assert found.pool is not None
    assert found.pool.core.unit == "attn_pool"
    assert [r for r, _ in found.roles() if r.startswith("pool")] == [
        "pool", "pool.q", "pool.k", "pool.v", "pool.proj",
    ]  # fmt: skip
