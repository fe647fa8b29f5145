"""Clauses are lowered one after the other: which comes when."""

from __future__ import annotations

from tests.lowering.models import applied
from vitrewrite.verification.stages import stages


def test_factors_of_all_sites_have_no_turn() -> None:
    """What is beside a layer folds into it nearest first, whatever a clause shares besides."""
    both = applied(
        "insert fact(rank=3) at every linear in blocks",
        "insert lora(rank=2) at blocks[*].attn.{q, v}",
    )
    assert [(stage.clause, stage.unchanged) for stage in stages(both)] == [(0, ()), (1, ())]
