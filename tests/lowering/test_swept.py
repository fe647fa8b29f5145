"""What nobody reads after lowering goes where units pass on all that a call yields, too."""

from __future__ import annotations

import torch
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg

import vitrewrite as vr

SPEC = "insert lora(rank=2) at blocks[*].attn.{q, v}\ntrain head\n"


def test_stages_that_yield_a_size_beside_tokens() -> None:
    config = MultiScaleVitCfg(depths=(1, 2), embed_dim=16, num_heads=1)
    model = MultiScaleVit(config, img_size=32, num_classes=5).eval()
    rewritten = vr.apply(SPEC, model, example=torch.zeros(1, 3, 32, 32))
    for tensor in rewritten.delta().values():
        tensor.normal_(std=0.1)
    lowered = vr.lower(rewritten)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(lowered.module(images), rewritten.module(images))
    # The last stage has no reader of its size left, nor has the last block in it.
    last = lowered.module.get_submodule("stages.1")
    assert last.template is not None
    output = last.template.graph.output_node()
    assert len(output.all_input_nodes) == 1
