"""LoRA, FacT, RepAdapter, SSF and sparse deltas at the same layers, in any order of the clauses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vitrewrite as vr
from tests.lowering.by_formula import by_formula
from tests.lowering.models import SPARSE, fill, profile, vit
from vitrewrite.rewrite.rewritten import Rewritten

AT = "blocks[*].attn.qkv + blocks[*].mlp.fc1"
CLAUSES = {
    "lora": "insert lora(rank=2) at blocks[*].attn.{q, v} + blocks[*].mlp.{fc1, fc2}",
    "fact": "insert fact(rank=3, scale=0.7) at every linear in blocks",
    "fact, tk": "insert fact(rank=3, form=tk, scale=0.7) at every linear in blocks",
    "repadapter": f"insert repadapter(hidden=4, scale=0.7) at {AT}",
    "ssf": f"insert ssf() at {AT} + blocks[*].{{norm1, norm2}} + blocks[*].attn.proj",
    "sparse": SPARSE,
}
ALL = ("lora", "fact", "repadapter", "ssf", "sparse")
X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def applied(names: tuple[str, ...]) -> Rewritten:
    text = "\n".join(CLAUSES[name] for name in names)
    return fill(vr.apply(f"{text}\n", vit(), profile=profile()))


@torch.no_grad()
def check(names: tuple[str, ...]) -> None:
    """The rewritten and the lowered model are what the formulas say, and the second is the base."""
    rewritten = applied(names)
    lowered = vr.lower(rewritten)
    expected = by_formula(vit(), rewritten.delta(), 0.7)(X)
    assert (expected - rewritten.base(X)).abs().max() > 1e-2
    scale = float(expected.abs().max())
    torch.testing.assert_close(rewritten.module.eval()(X), expected, rtol=0, atol=2e-5 * scale)
    torch.testing.assert_close(lowered.module(X), expected, rtol=0, atol=2e-5 * scale)
    assert not lowered.result.editor.insertions
    base = {k: v.shape for k, v in rewritten.base.state_dict().items()}
    assert {k: v.shape for k, v in lowered.module.state_dict().items()} == base
    assert lowered.report["macs"] == rewritten.measures.macs_base
    assert lowered.report["params"]["total"] == sum(v.numel() for v in base.values())


SOME = [
    ("lora", "repadapter"), ("repadapter", "fact"), ("ssf", "repadapter"), ALL, ALL[::-1],
    ("repadapter", "ssf", "fact, tk", "lora", "sparse"),
]  # fmt: skip


@pytest.mark.parametrize("names", SOME, ids=" ".join)
def test_some_orders(names: tuple[str, ...]) -> None:
    check(names)


@pytest.mark.slow
@settings(max_examples=20)
@given(names=st.lists(st.sampled_from(sorted(CLAUSES)), min_size=3, unique=True))
def test_any_subset_in_any_order(names: list[str]) -> None:
    if "fact, tk" in names and "fact" in names:
        names.remove("fact")
    check(tuple(names))
