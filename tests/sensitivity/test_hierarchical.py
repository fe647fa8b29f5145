"""SPT by its own rules where there is no code of the authors: Swin and ConvNeXt."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import vitrewrite as vr
from vitrewrite.anatomy import analyse
from vitrewrite.profiling.run import measure
from vitrewrite.sensitivity import Candidate, candidates
from vitrewrite.tracing import trace

SPEC = """
insert {structured} at sensitive(budget={budget}, samples=24, scale=10K)
insert sparse() at sensitive(budget={budget}, samples=24, scale=10K)
train sensitive(budget={budget}, samples=24, scale=10K)
train head
"""
LORA, ADAPTER = "lora(rank=1, convention=spt)", "adapter(hidden=1)"


def swin() -> nn.Module:
    return timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        window_size=4,
        embed_dim=16,
        depths=(2, 1),
        num_heads=(2, 4),
        in_chans=1,
        num_classes=10,
    )


def convnext() -> nn.Module:
    return timm.create_model(
        "convnext_tiny",
        depths=(1, 1, 1, 1),
        dims=(8, 16, 24, 32),
        in_chans=1,
        num_classes=10,
        pretrained_cfg_overlay={"input_size": (1, 32, 32)},
    )


def listed(model: nn.Module) -> dict[str, Candidate]:
    root = trace(model)
    return {c.name: c for c in candidates(root, analyse(root))}


def test_candidates_of_swin() -> None:
    found = listed(swin())
    matrices = [c for c in found.values() if c.is_matrix]
    assert len(matrices) == 3 * 6 + 1  # q, k, v, proj, fc1, fc2 of each block, and the reduction
    assert found["layers.1.downsample.reduction.weight"].shape == (32, 64)
    vectors = [c for c in found.values() if not c.is_matrix]
    assert len(vectors) == 3 * (4 + 6) + 2 + 2  # the norm of the merging, and the final one
    assert all(c.entries for c in found.values())
    for name in found:
        assert not name.startswith(("head", "patch_embed"))
        assert "relative_position" not in name


def test_candidates_of_convnext() -> None:
    found = listed(convnext())
    matrices = {c.name for c in found.values() if c.is_matrix}
    blocks = [f"stages.{i}.blocks.0" for i in range(4)]
    assert matrices == {f"{b}.mlp.fc{i}.weight" for b in blocks for i in (1, 2)}
    whole = {c.name for c in found.values() if not c.entries}
    parts = ("0.weight", "0.bias", "1.bias")
    between = {f"stages.{i}.downsample.{part}" for i in (1, 2, 3) for part in parts}
    # Of a convolution's bias, a layer scale and a norm over channels no single entries are trained.
    assert whole == {f"{b}.{k}" for b in blocks for k in ("gamma", "conv_dw.bias")} | between | {
        "head.norm.weight",
        "head.norm.bias",
    }
    # Two biases and a norm of each block besides.
    assert len(found) == len(matrices) + len(whole) + 4 * 4
    assert not any(name.startswith(("stem", "head.fc")) for name in found)


@pytest.mark.parametrize(
    ("build", "structured", "budget"),
    [(swin, LORA, 1500), (convnext, LORA, 1000), (swin, ADAPTER, 1500), (convnext, ADAPTER, 1000)],
)
def test_from_profile_to_emitted_source(
    build: Any, structured: str, budget: int, tmp_path: Path
) -> None:
    spec = SPEC.format(structured=structured, budget=budget)
    torch.manual_seed(0)
    model = build()
    profile = measure(vr.parse(spec), model, data="digits", batch=8)
    rewritten = vr.apply(spec, model, profile=profile)
    (allocation,) = rewritten.result.allocations.values()
    kinds = {d.kind for d in allocation.decisions}
    assert kinds >= {"structured", "entries", "vector"}
    assert allocation.total == sum(d.parameters for d in allocation.decisions)
    x, y = torch.randn(4, 1, 32, 32), torch.arange(4)
    vr.verify(rewritten, graphs=False)
    step(rewritten.module, x, y)
    rewritten.module.eval()
    with torch.no_grad():
        expected = rewritten.module(x)
        lowered = vr.lower(rewritten)
        torch.testing.assert_close(lowered.module(x), expected, rtol=1e-4, atol=1e-5)
    out = vr.emit(rewritten, tmp_path / "out")
    torch.save({"x": x, "y": expected}, tmp_path / "x.pt")
    code = (
        "import torch, model; d = torch.load('../x.pt'); m = model.load('weights.safetensors');"
        "assert torch.equal(m.eval()(d['x']), d['y'])"
    )
    subprocess.run([sys.executable, "-c", code], cwd=out, check=True)


def step(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    """One step of training, after which nothing that is trained is as it was."""
    trained = [p for p in module.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    optimiser = torch.optim.AdamW(trained, 1e-2)
    for _ in range(2):  # the second factor of a module moves first
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(module.train()(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, trained, strict=True))
