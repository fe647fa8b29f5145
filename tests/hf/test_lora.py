"""LoRA on towers and decoders of Hugging Face: same output at first, gradients, lowering."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vitrewrite as vr
from tests.hf.zoo import ZOO
from tests.models import spread
from tests.zoo.subject import tensors
from vitrewrite.rewrite.rewritten import Rewritten
from vitrewrite.tracing.construction import construct
from vitrewrite.verification.numeric import difference, lowering_error, sample

TOWER = "blocks[*].attn.{q, v}"
DECODER = (
    "decoder.layers[*].cross_attn.{q, k, v} + decoder.layers[*].self_attn.{q, v}"
    " + decoder.layers[*].ffn.{fc1, fc2} + decoder.mask_head + pixel_decoder.layers[*].mlp.fc1"
)
CASES = {
    **{n: TOWER for n in ("vit", "dinov2", "clip", "blip", "swin", "segformer")},
    "mask2former-r50": DECODER,
    "mask2former-swin": f"{TOWER} + {DECODER}",
    "mask2former-aux": "head + decoder.mask_head",  # called for each of ten predictions
}


def applied(name: str, clauses: str) -> Rewritten:
    torch.manual_seed(0)
    member = ZOO[name]
    model = spread(construct(member.build)).eval()
    return vr.apply(clauses, model, example=torch.zeros(1, 3, *member.sizes[0]))


@pytest.mark.slow
def test_all_that_is_claimed_holds() -> None:
    for check in vr.verify(applied("vit", f"insert lora(rank=2) at {TOWER}\n")):
        assert check.holds, check


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name == "mask2former-r50")) for name in CASES],
)
def test_lora(name: str) -> None:
    rewritten = applied(name, f"insert lora(rank=2) at {CASES[name]}\n")
    assert difference(rewritten.base, rewritten.module, sample(rewritten)) == 0
    checks = {c.name: c for c in vr.verify(rewritten, graphs=False)} if name == "vit" else {}
    assert all(c.holds for c in checks.values())
    assert lowering_error(rewritten) < 2e-5
    outputs = tensors(rewritten.module(*sample(rewritten))).values()
    sum(t.square().sum() for t in outputs if t.requires_grad).backward()
    for path, parameter in rewritten.module.named_parameters():
        assert (parameter.grad is not None) == ("_lora" in path), path
    sites = rewritten.result.steps[0].sites
    assert len(rewritten.delta()) == 2 * len(sites)


def test_rows_of_a_packed_projection_are_adapted_apart() -> None:
    layer = "model.transformer_module.decoder.layers.4.cross_attn"
    rewritten = applied(
        "mask2former-r50", "insert lora(rank=2) at decoder.layers[4].cross_attn.{q, v}\n"
    )
    assert set(rewritten.delta()) == {
        f"{layer}.{row}.lora.{part}" for row in "qv" for part in ("down", "up")
    }
    for tensor in rewritten.delta().values():
        torch.nn.init.normal_(tensor)
    changed = vr.lower(rewritten).module.get_parameter(f"{layer}.in_proj_weight")
    kept = rewritten.base.get_parameter(f"{layer}.in_proj_weight")
    same = [torch.equal(a, b) for a, b in zip(changed.chunk(3), kept.chunk(3), strict=True)]
    assert same == [False, True, False]


def test_queries_can_be_trained() -> None:
    rewritten = applied("mask2former-r50", "train decoder.queries\n")
    trained = {n for n, p in rewritten.module.named_parameters() if p.requires_grad}
    assert {n.rpartition(".")[0].rpartition(".")[2] for n in trained} == {
        "queries_features",
        "queries_embedder",
    }


@pytest.mark.slow
def test_a_written_folder_tests_itself(tmp_path: Path) -> None:
    rewritten = applied("mask2former-r50", f"insert lora(rank=2) at {DECODER}\n")
    vr.emit(rewritten, tmp_path / "out")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_model.py"]
    done = subprocess.run(
        command, cwd=tmp_path / "out", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:]
