"""Models of another library: nothing in the analysis is made for timm's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vitrewrite.anatomy import Anatomy, analyse
from vitrewrite.tracing import trace

transformers = pytest.importorskip("transformers")


def _analysed(kind: str, **options: Any) -> Anatomy:
    config = getattr(transformers, f"{kind}Config")(image_size=32, **options)
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}ForImageClassification")(config)
    return analyse(trace(model, torch.zeros(2, 3, 32, 32, device="meta")))


def test_vit() -> None:
    found = _analysed(
        "ViT", hidden_size=48, num_hidden_layers=2, num_attention_heads=4, patch_size=8
    )
    assert len(found.blocks) == 2
    assert (found.stream.tokens, found.stream.grid) == (17, (4, 4))
    assert [p.rpartition(".")[2] for p in found.stream.prefix] == ["cls_token"]
    assert [h.path for h in found.head] == ["classifier"]
    for block in found.blocks:
        assert block.unit is not None
        assert block.attn is not None
        assert block.attn.heads == 4
        roles = [s.role.removeprefix(f"{block.role}.") for s in block.linears]
        assert roles == ["attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2"]
        norms = [n and n.rpartition(".")[2] for n in (block.norm1, block.norm2)]
        assert norms == ["layernorm_before", "layernorm_after"]


def test_swin() -> None:
    found = _analysed(
        "Swin", patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4
    )
    assert [len(s) for s in found.stages] == [2, 2]
    assert [b.attn and b.attn.heads for b in found.blocks] == [2, 2, 4, 4]
    assert [b.attn and b.attn.windows for b in found.blocks] == [(4, 4)] * 4
