"""Every pass on a vision transformer of Hugging Face, together."""

from __future__ import annotations

import pytest
import torch

import vitrewrite as vr

SPEC = """insert lora(rank=2) at blocks[*].attn.{q, v}
prepend prompt(count=3) to blocks[*]
prepend kv_prompt(n=2) to blocks[*].attn
insert merge.bdm() after blocks[1].attn
"""


def test_all_passes_together() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_labels=5,
    )
    model = transformers.ViTForImageClassification(config).eval()
    rewritten = vr.apply(SPEC, model, example=torch.zeros(1, 3, 32, 32))
    assert rewritten.report["tokens"] == [17, 20, 12, 12]
    vr.verify(rewritten, graphs=False)
    lowered = vr.lower(rewritten)
    assert lowered.report["tokens"] == [17, 17, 9, 9]
    vr.verify(lowered, graphs=False)
