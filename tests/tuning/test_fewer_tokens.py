"""On digits, three seeds: gates meet their rate by what they see, and a matching is learned."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

import vitrewrite as vr
from vitrewrite.data import Preprocessing, batches, open_data
from vitrewrite.rewrite.rewritten import Rewritten
from vitrewrite.tuning import Settings, tune

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("seed", range(3))]
SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 4}


def pretrained(seed: int, out: Path) -> torch.nn.Module:
    """A small ViT that knows digits."""
    torch.manual_seed(seed)
    model = timm.create_model("vit_tiny_patch16_224", **SMALL, num_classes=10, in_chans=1)
    full = Settings(batch=32, lr=1e-3, epochs=4, warmup_epochs=1.0)
    return tune(
        vr.apply("train every parameter\n", model), "digits", full, out=out, seed=seed
    ).module


def tuned(spec: str, seed: int, folder: Path, settings: Settings) -> Rewritten:
    """A spec on that ViT, trained."""
    model = pretrained(seed, folder / "whole")
    rewritten = vr.apply(spec, model, example=torch.zeros(1, 1, 16, 16), seed=seed)
    return tune(rewritten, "digits", settings, out=folder / "run", seed=seed)


@torch.no_grad()
def test_gates_meet_their_rate(seed: int, tmp_path: Path) -> None:
    """Within 5 points over images not trained on, by what patches are: noise is for training.

    Two of the seeds are within 3; the published run misses by 4.5 to 5.9.
    """
    spec = "insert dispatch(rate=0.5, hidden=8) at blocks[*].mlp_branch\ntrain head\n"
    with torch.enable_grad():
        made = tuned(spec, seed, tmp_path, Settings(batch=32, lr=1e-2, epochs=30))
    data = open_data("digits", Preprocessing.of(made.base)).val
    gates = [made.module.eval().dynamic(batch.images)[1] for batch in batches(data, 64)]
    layers = [torch.cat(layer)[:, 1:] for layer in zip(*gates, strict=True)]
    rates = [float(layer.mean()) for layer in layers]
    assert sum(rates) / len(rates) == pytest.approx(0.5, abs=0.05), rates
    decided = [rate for rate in rates if 0.02 < rate < 0.98]
    assert len(decided) >= len(rates) - 1, rates
    assert max(rates) - min(rates) > 0.05  # one rate for the model, not for every layer
    assert made.report["training"]["accuracy"] > 0.6


def test_a_matching_is_learned(seed: int, tmp_path: Path) -> None:
    """The adapter on the keys moves."""
    spec = "insert lora(rank=8) at blocks[*].attn.{q, v}\ninsert merge.bdm() after blocks[2].attn\n"
    made = tuned(spec + "train head\n", seed, tmp_path, Settings(batch=32, lr=2e-3, epochs=6))
    first = vr.apply(spec, made.base, example=torch.zeros(1, 1, 16, 16), seed=seed).delta()
    moved = {
        n: (t - first[n]).norm() / first[n].norm() for n, t in made.delta().items() if n in first
    }
    refined = {n: float(m) for n, m in moved.items() if "refine" in n}
    assert len(refined) == 2
    assert min(refined.values()) > 0.01, refined
