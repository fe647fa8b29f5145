"""Initial values, as the methods' papers and the authors' code have them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from vitrewrite.passes.adapter import Adapter
from vitrewrite.passes.bi.adaptformer import QuantisedAdapter
from vitrewrite.passes.bi.head import QuantisedHead
from vitrewrite.passes.bi.lora import QuantisedLowRank
from vitrewrite.passes.dfpq.keys import ConditionalPosition, LearnedPosition, ProjectedPosition
from vitrewrite.passes.dfpq.queries import PositionalQueries
from vitrewrite.passes.hrca import FineLevel, HighResolutionCrossAttention
from vitrewrite.passes.kv_prompt import KeyValuePrompt
from vitrewrite.passes.lora import LowRank
from vitrewrite.passes.merge.bdm import BipartiteMerge
from vitrewrite.passes.prompt import Prompt, PromptMasks
from vitrewrite.passes.rcda import RowColumnAttention
from vitrewrite.passes.sparse import SparseDelta

import vitrewrite as vr

ROWS = ((0, 64), (128, 192))
HALF = 1 / math.sqrt(64)  # Kaiming-uniform with a = sqrt(5) on 64 inputs

UNIFORM: list[tuple[nn.Module, dict[str, float]]] = [
    (LowRank(64, ROWS, 8, 1.0), {"down": HALF, "up": 0}),
    (
        Adapter(64, 32, ((0, 64),)),
        {"down.weight": HALF, "down.bias": HALF, "up.weight": 0, "up.bias": 0},
    ),
    (SparseDelta((8, 8), (("weight", 40), ("bias", 3))), {"weight": 0, "bias": 0}),
    (KeyValuePrompt(4, 5, 16, (math.sqrt(6 / 80),) * 2), {"kv": math.sqrt(6 / (5 * 16))}),
    (Prompt(10, 64, 1, math.sqrt(6 / (768 + 64)), 10), {"prompt": math.sqrt(6 / (768 + 64))}),
    (BipartiteMerge((4, 4), 64, bits=32), {"down.weight": HALF, "up.weight": 0}),
    (BipartiteMerge((4, 4), 64), {"down.weight": HALF, "up.weight": 2e-3}),
    (QuantisedLowRank(64, ROWS, 8, 1.0), {"down.1.weight": HALF, "up.0.weight": 2e-3}),
    (QuantisedLowRank(64, ROWS, 8, 1.0, 32), {"down.0.weight": HALF, "up.1.weight": 0}),
    (QuantisedAdapter(64, 32, bits=8), {"down.weight": HALF, "up.weight": 2e-3}),
    (QuantisedHead(64, 10), {"quantised.weight": HALF}),
    (
        PositionalQueries(64),
        {"h.0.weight": HALF, "h.2.weight": HALF, "h.0.bias": HALF, "h.2.bias": HALF},
    ),
    (ConditionalPosition(64), {"weight": 1 / 3, "bias": 1 / 3}),
    (
        ProjectedPosition(32, 64),
        {
            "projection": math.sqrt(6 / (32 + 64)), "projection_bias": 0, "norm_bias": 0,
            "weight": 1 / 3, "bias": 1 / 3,
        },
    ),
    (RowColumnAttention(64, 4), {"q_x.weight": HALF, "out.weight": HALF, "v.bias": 0}),
]  # fmt: skip


@pytest.mark.parametrize(("module", "bounds"), UNIFORM, ids=lambda v: type(v).__name__)
def test_bounds(module: Any, bounds: dict[str, float]) -> None:
    module.reset_parameters(torch.Generator().manual_seed(0))
    for name, bound in bounds.items():
        values = module.get_parameter(name).detach().abs()
        assert values.max() <= bound
        assert values.max() >= 0.9 * bound
        if bound and values.numel() > 500 and bound != 2e-3:
            assert values.mean() == pytest.approx(bound / 2, rel=0.1)  # as of a uniform one


@pytest.mark.parametrize(
    ("module", "name", "std"),
    [
        (FineLevel(4096), "level_embed", 1.0),
        (LearnedPosition(64, 8, 8), "position", 1.0),
        (KeyValuePrompt(8, 16, 64, (0.0, 0.0), v_width=64), "v", 0.02),
    ],
)
def test_standard_deviations(module: Any, name: str, std: float) -> None:
    module.reset_parameters(torch.Generator().manual_seed(0))
    values = module.get_parameter(name).detach()
    assert values.std() == pytest.approx(std, rel=0.05)
    assert abs(values.mean()) < 0.05 * std


def test_truncated_normal_of_the_merge() -> None:
    merge = BipartiteMerge((4, 4), 64, hidden=128)
    std = merge.up.weight.detach().std()
    assert std == pytest.approx(0.88e-3, rel=0.03)  # 1e-3, cut at two of them


def test_ones() -> None:
    masks = PromptMasks(3, 4, 16)
    assert all(bool((p == 1).all()) for p in masks.parameters())
    assert bool((ProjectedPosition(32, 64).norm_weight == 1).all())


def test_keys_and_values_of_other_widths_have_bounds_of_their_own() -> None:
    prompt = KeyValuePrompt(4, 5, 16, (0.5, 0.1), v_width=64)
    prompt.reset_parameters(torch.Generator().manual_seed(0))
    assert 0.45 < prompt.k.abs().max() <= 0.5
    assert 0.09 < prompt.v.abs().max() <= 0.1


def test_new_layers_of_a_decoder_have_xavier_matrices_and_zero_biases() -> None:
    layer = nn.Sequential(nn.Linear(32, 64), nn.LayerNorm(64))
    layer.norm = layer[1]  # type: ignore[assignment]
    HighResolutionCrossAttention().initialise(layer, torch.Generator().manual_seed(0))
    bound = math.sqrt(6 / (32 + 64))
    assert 0.95 * bound < layer[0].weight.abs().max() <= bound
    assert not layer[0].bias.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_values_are_drawn_in_float32_and_rounded(dtype: torch.dtype) -> None:
    from timm.models.vision_transformer import VisionTransformer

    def drawn(kind: torch.dtype) -> dict[str, torch.Tensor]:
        model = VisionTransformer(
            img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=3
        )
        return vr.apply("insert lora(rank=2) at blocks[0].attn.q\n", model.to(kind)).delta()

    exact, rounded = drawn(torch.float32), drawn(torch.bfloat16)
    assert all(torch.equal(rounded[k], v.to(torch.bfloat16)) for k, v in exact.items())
    assert all(v.dtype == dtype for v in drawn(dtype).values())
