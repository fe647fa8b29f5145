"""Merges on DINOv3 of transformers, whose attentions are given cosines and sines."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import vitrewrite as vr
from tests.models import spread
from tests.passes.test_merge_tome import groups, merged
from tests.sites.test_positions import keys

pytestmark = pytest.mark.skipif(
    not hasattr(transformers, "DINOv3ViTConfig"), reason="transformers has DINOv3 since 4.56"
)


def build() -> Any:
    torch.manual_seed(0)
    config = transformers.DINOv3ViTConfig(
        image_size=64,
        patch_size=16,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_register_tokens=2,
    )
    return spread(transformers.DINOv3ViTModel(config)).eval()


@torch.no_grad()
def reference(model: Any, pixels: torch.Tensor, r: int, prefix: int = 3) -> torch.Tensor:
    """What the model yields when each patch takes the position of the one that it was."""
    x, tables = model.embeddings(pixels), model.rope_embeddings(pixels)
    sizes = torch.ones(x.shape[:2])
    places = torch.arange(x.shape[1] - prefix).expand(len(x), -1)
    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    for layer in layers:
        rows = tuple(torch.stack([table[p] for p in places])[:, None] for table in tables)
        bias = sizes.log()[:, None, None].expand(-1, -1, x.shape[1], -1)
        with keys() as seen:
            made = layer.attention(layer.norm1(x), attention_mask=bias, position_embeddings=rows)[0]
        x, found = x + layer.layer_scale1(made), []
        for tokens, m, size, place in zip(x, seen[0].mean(1), sizes, places, strict=True):
            first = torch.tensor([g[0] - prefix for g in groups(m, r, prefix)[prefix:]])
            found.append((*merged(tokens, m, size, r, prefix), place[first]))
        x, sizes, places = (torch.stack(one) for one in zip(*found, strict=True))
        x = x + layer.layer_scale2(layer.mlp(layer.norm2(x)))
    y: torch.Tensor = model.norm(x)
    return y


def test_patches_keep_their_positions() -> None:
    model = build()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    spec = "insert merge.tome(r=2) after blocks[*].attn\n"
    rewritten = vr.apply(spec, model, example=x[:1])
    expected = reference(model, x, 2)
    for each in (rewritten, vr.lower(rewritten)):
        with torch.no_grad():
            y = each.module.eval()(x)["last_hidden_state"]
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    back = vr.apply(spec + "insert unmerge() after blocks[-1]\n", model, example=x[:1])
    assert back.module.eval()(x)["last_hidden_state"].shape == (2, 19, 24)
