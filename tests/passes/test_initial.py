"""Initial values hang on the seed, the pass and the site alone."""

from __future__ import annotations

from itertools import permutations

import torch

import vitrewrite as vr
from tests.lowering.models import vit

CLAUSES = (
    "insert lora(rank=2) at blocks[*].attn.q",
    "insert lora(rank=2) at blocks[*].attn.v",
    "insert adapter(hidden=2) at blocks[*].mlp.fc1",
    "prepend kv_prompt(n=2) to blocks[*].attn",
    "prepend prompt(count=3, masks=true, segments=4) to blocks[*]",
    "insert merge.bdm() after blocks[0].attn",
)


def values(*clauses: str, seed: int = 0) -> dict[str, torch.Tensor]:
    return vr.apply("\n".join(clauses) + "\n", vit(), seed=seed).delta()


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[k], second[k]) for k in first.keys() & second.keys())


def test_another_clause_or_order_changes_nothing() -> None:
    together = values(*CLAUSES)
    assert same(together, values(*CLAUSES[::-1]))
    for clause in CLAUSES:
        alone = values(clause)
        assert alone.keys() <= together.keys()
        assert same(alone, together)


def test_sites_and_seeds_differ() -> None:
    drawn = values(*CLAUSES[:2])
    downs = [v for k, v in drawn.items() if k.endswith("down")]
    assert len(downs) == 6
    assert not any(torch.equal(a, b) for a, b in permutations(downs, 2))
    other = values(*CLAUSES[:2], seed=1)
    assert not any(torch.equal(v, other[k]) for k, v in drawn.items() if k.endswith("down"))
    assert same(drawn, values(*CLAUSES[:2]))


def test_a_shared_matrix_is_drawn_for_its_owner() -> None:
    """Two blocks that are one module have one branch, whichever of them is named."""
    model = vit()
    model.blocks[2] = model.blocks[0]
    first, second = (
        vr.apply(f"insert lora(rank=2) at blocks[{i}].attn.q\n", model).delta() for i in (0, "0:3")
    )
    assert same(first, second)
    assert first.keys() & second.keys()
