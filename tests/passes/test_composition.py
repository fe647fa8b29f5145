"""Passes together: every order of the clauses is the same model, on every kind of attention."""

from __future__ import annotations

from itertools import permutations

import pytest
import timm
import torch

import vitrewrite as vr
from tests.models import spread
from vitrewrite.rewrite.rewritten import Rewritten

CLAUSES = (
    "insert lora(rank=2, dropout=0) at blocks[*].attn.{q, v}",
    "prepend kv_prompt(n=2) to blocks[*].attn",
    "prepend prompt(count=3, masks=true, segments=4) to blocks[*]",
    "insert merge.bdm(dropout=0) after blocks[1].attn",
)


def vit() -> torch.nn.Module:
    torch.manual_seed(0)
    return spread(
        timm.models.vision_transformer.VisionTransformer(
            img_size=32, patch_size=4, embed_dim=16, depth=4, num_heads=2, num_classes=5
        )
    )


def fill(rewritten: Rewritten) -> Rewritten:
    """Every tensor of the delta drawn by its name."""
    for name, tensor in rewritten.delta().items():
        generator = torch.Generator().manual_seed(sum(map(ord, name)))
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    return rewritten


@torch.no_grad()
def run(rewritten: Rewritten) -> torch.Tensor:
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    result: torch.Tensor = rewritten.module.eval()(x)
    return result


@pytest.fixture(scope="module")
def together() -> Rewritten:
    return fill(vr.apply("\n".join(CLAUSES) + "\n", vit()))


@pytest.mark.parametrize("order", list(permutations(range(4)))[1:])
def test_every_order_is_the_same_model(order: tuple[int, ...], together: Rewritten) -> None:
    other = fill(vr.apply("\n".join(CLAUSES[i] for i in order) + "\n", vit()))
    assert other.delta().keys() == together.delta().keys()
    torch.testing.assert_close(run(other), run(together), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(run(vr.lower(other)), run(together), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_all_together_verifies(together: Rewritten) -> None:
    assert together.report["tokens"] == [65, 68, 36, 36, 36]
    vr.verify(together)
    lowered = vr.lower(together)
    assert lowered.report["tokens"] == [65, 65, 33, 33, 33]
    vr.verify(lowered, graphs=False)


def test_prompts_that_join_behind_the_merge_have_size_one() -> None:
    """Sizes are of the tokens at the merge; what joins later counts as one."""
    spec = f"{CLAUSES[3]}\nprepend prompt(count=3) to blocks[2:]\n"
    rewritten = fill(vr.apply(spec, vit()))
    assert rewritten.report["tokens"] == [65, 65, 33, 36, 36]
    vr.verify(rewritten, graphs=False)
    without = fill(vr.apply(spec.replace("dropout=0", "dropout=0, prop_attn=false"), vit()))
    assert float((run(rewritten) - run(without)).abs().max()) > 1e-4
    torch.testing.assert_close(run(vr.lower(rewritten)), run(rewritten), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("deit_base_distilled_patch16_224", {"depth": 2}),
        ("vit_small_patch14_reg4_dinov2", {"depth": 2, "img_size": 56}),
        ("deit3_small_patch16_224", {"depth": 2, "img_size": 64}),
        ("flexivit_small", {"depth": 2, "img_size": 64}),
    ],
)
def test_on_other_models(name: str, options: dict[str, int]) -> None:
    model = spread(timm.create_model(name, num_classes=5, **options))
    clauses = "\n".join(CLAUSES).replace("blocks[1]", "blocks[0]")
    vr.verify(vr.apply(clauses + "\n", model), graphs=False)
