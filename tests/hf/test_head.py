"""New heads on models of Hugging Face, against one of torch on their own hidden states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import vitrewrite as vr
from tests.authored import install
from tests.hf.zoo import VIT, mask2former
from tests.lowering.models import fill
from tests.sites.test_head import TAPPING


@pytest.fixture(autouse=True)
def passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path, tapping=TAPPING)


@torch.no_grad()
def test_a_probe_on_hidden_states() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**VIT)).eval()
    x = torch.randn(3, 3, 32, 32)
    seen: Any = model(x, output_hidden_states=True).hidden_states
    spec = "replace head with tapping(pooled=false)\nrequire trainable <= 0 excluding head\n"
    rewritten = fill(vr.apply(spec, model, example=x[:1]))
    delta = rewritten.delta()
    means = torch.cat([seen[1].mean(1), seen[-1].mean(1)], dim=1)
    weight, bias = (delta[f"classifier.tapping.out.{name}"] for name in ("weight", "bias"))
    found: Any = rewritten.module.eval()(x)
    torch.testing.assert_close(found["logits"], means @ weight.mT + bias, rtol=1e-4, atol=1e-5)
    lost = model.state_dict().keys() - rewritten.module.state_dict().keys()
    assert lost == {f"{m}.{n}" for m in ("classifier", "vit.layernorm") for n in ("weight", "bias")}
    assert any("classifier.*, vit.layernorm.*" in w for w in rewritten.report["warnings"])


def test_what_classifies_queries_is_no_head_to_replace() -> None:
    model = mask2former("resnet").eval()
    with pytest.raises(vr.VitrewriteError, match=r"VR410 .*classifies the queries of a decoder"):
        vr.plan("replace head with tapping()\n", model, example=torch.zeros(1, 3, 64, 64))
