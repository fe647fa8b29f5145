"""A flat `fx.GraphModule` has the same sites, only no units for its blocks."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import timm
import torch
from torch import fx

from tests.models import without_fused_attention
from vitrewrite.anatomy import Anatomy, analyse
from vitrewrite.tracing import trace


def _sites(anatomy: Anatomy) -> dict[str, Any]:
    """What does not depend on where the graphs are cut."""
    places = ("call", "core", "act", "input", "mid", "output", "unit", "model",
              "patches", "calls", "sum", "first_norm", "last_norm", "map")  # fmt: skip

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: kept(v) for k, v in value.items() if k not in places}
        return [kept(v) for v in value] if isinstance(value, (tuple, list)) else value

    result: dict[str, Any] = kept(asdict(replace(anatomy, calls={})))
    return result


def test_flat_graph() -> None:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", depth=3, img_size=32, embed_dim=48, num_heads=4, num_classes=5
    ).eval()
    model = without_fused_attention(model)
    image = torch.zeros(2, 3, 32, 32)
    nested = analyse(trace(model, image))
    root = trace(fx.symbolic_trace(model), image)
    flat = analyse(root)
    # Outside of `PatchEmbed`, only the convolution is left of the patch embedding.
    expected = {**_sites(nested), "patch_embed": "patch_embed.proj"}
    expected["convs"][0]["role"] = "patch_embed"
    assert _sites(flat) == expected
    assert [b.unit for b in flat.blocks] == [None] * 3
    names = [n.name for n in root.template.graph.nodes]
    for block in flat.blocks:
        assert block.mid is not None
        assert {p.unit for p in (block.input, block.mid, block.output)} == {""}
        order = [names.index(p.node) for p in (block.input, block.mid, block.output)]
        assert order == sorted(order)
