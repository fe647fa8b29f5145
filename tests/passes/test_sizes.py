"""Sizes of merged tokens hang on no value: with and without gradients it is the same attention.

A score bias that asks for a gradient takes attention on the CPU off the fused kernel, whose last
bits are others: what is emitted, where all is trained, would differ from a rewritten tree that is
frozen. Only the sizes of `merge.bdm` have a gradient, as published, and differ by rounding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

import vitrewrite as vr
from tests.emission.emitted import loaded

CLAUSES = {
    "tome": "insert merge.tome(r=2) after blocks[*].attn\n",
    "bsm": "insert merge.bdm(match=bsm) after blocks[0].attn\n",
    "bdm": "insert merge.bdm() after blocks[0].attn\n",
    "pool": "insert merge.pool() after blocks[0].attn\n",
    "evit": "insert prune.evit(keep=0.7, prop_attn=true) after blocks[0].attn\n",
    "ltmp": "insert prune.ltmp(target=0.75) after blocks[*].attn\n",
}
CASES = [(name, False) for name in CLAUSES] + [(name, True) for name in ("tome", "bdm", "ltmp")]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rewritten(name: str) -> Any:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
    model = VisionTransformer(**sizes, num_classes=5, drop_path_rate=0.2)  # type: ignore[arg-type]
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return vr.apply(CLAUSES[name], model.eval())


def run(module: torch.nn.Module, batch: int, *, trained: bool, training: bool) -> Any:
    """Outputs, and the gradients by name, where all or nothing is trained."""
    module.train(training).requires_grad_(trained)
    x = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    y = module(x)
    if not trained:
        return y, {}
    named = dict(module.named_parameters())
    found = torch.autograd.grad(y.square().sum(), list(named.values()), allow_unused=True)
    return y.detach(), dict(zip(named, found, strict=True))


def sizes_asking(made: Any) -> list[bool]:
    """Filled by runs: whether the sizes that modules yield ask for gradients."""
    asked: list[bool] = []
    for module in made.module.modules():
        if isinstance(getattr(module, "changes", None), tuple) and len(module.changes) == 2:
            module.register_forward_hook(lambda *given: asked.append(given[2][1].requires_grad))
    return asked


@pytest.mark.parametrize(("name", "lowered"), CASES)
def test_emitted_and_rewritten_agree_whatever_is_trained(
    name: str, lowered: bool, tmp_path: Path
) -> None:
    made = vr.lower(rewritten(name)) if lowered else rewritten(name)
    vr.emit(made, tmp_path)
    twin, asked = loaded(tmp_path), sizes_asking(made)
    soft = name == "bdm" and not lowered
    for batch, training in ((1, False), (2, True), (5, False)):
        plain, _ = run(made.module, batch, trained=False, training=training)
        trained, ours = run(made.module, batch, trained=True, training=training)
        emitted, theirs = run(twin, batch, trained=True, training=training)
        assert torch.equal(trained, emitted)
        assert ours.keys() == theirs.keys()
        for key, gradient in ours.items():
            assert (gradient is None) == (theirs[key] is None), key
            assert gradient is None or torch.equal(gradient, theirs[key]), key
        torch.testing.assert_close(plain, trained, rtol=1e-5 * soft, atol=1e-5 * soft)
    assert asked
    assert any(asked) == soft
