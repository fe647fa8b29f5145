"""What is trained is the same everywhere: report, module, emitted source, its tests, the delta."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import vitrewrite as vr
from vitrewrite.folder.writing import model_text
from vitrewrite.folder.writing import test_text as text_of_tests

TINY = (
    "model vit_tiny_patch16_224(depth=1, embed_dim=24, num_heads=3, img_size=32, num_classes=5)\n"
)
HEAD = 125

SPECS = {
    "nothing": ("freeze head", 0),
    "an insertion that matches nothing": (
        "insert lora(rank=2) at optional blocks[*].attn.q where dim > 9999", 0),
    "a train that matches nothing": ('train optional module("none")', 0),
    "inserted and frozen again": ("insert lora(rank=2) at blocks[*].attn.q\nfreeze blocks", 0),
    "one": ("train head", HEAD),
    "all": ("train blocks + norm + head + patch_embed + cls_token + pos_embed", None),
    "no clause": ("", None),
}  # fmt: skip


def trained(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", SPECS)
def test_what_is_trained_is_the_same_everywhere(name: str) -> None:
    clauses, expected = SPECS[name]
    rewritten = vr.apply(f"{TINY}{clauses}\n")
    count = sum(p.numel() for p in rewritten.module.parameters()) if expected is None else expected
    assert rewritten.report["params"]["trainable"] == trained(rewritten.module) == count
    space: dict[str, Any] = {"__name__": "emitted"}
    exec(model_text(rewritten), space)
    assert trained(space["build"]()) == count
    assert f", {count}\n" in text_of_tests(rewritten)
    assert ("test_nothing_is_trained" in text_of_tests(rewritten)) == (count == 0)
    in_delta = sum(t.numel() for k, t in rewritten.delta().items() if ".lora." not in k)
    assert in_delta == count
    lowered = vr.lower(rewritten)
    exec(model_text(lowered), space)
    assert trained(space["build"]()) == trained(lowered.module)
