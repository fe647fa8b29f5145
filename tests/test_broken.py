"""A rewritten model that does not run: the clause that is named is the one nearest to the fault."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vitrewrite.rewrite.measures import _nearest

PATHS = {1: "blocks.0.attn.qkv_lora", 2: "blocks.1.attn.qkv_lora", 3: "blocks.1.mlp.fc1_lora"}


@pytest.mark.parametrize(
    ("path", "clause"),
    [("blocks.0.attn", 1), ("blocks.1.attn.qkv", 2), ("blocks.1.mlp", 3), ("blocks.0.mlp", 1)],
)
def test_the_clause_with_the_longest_way_in_common(path: str, clause: int) -> None:
    insertions = [SimpleNamespace(path=p, clause=n) for n, p in PATHS.items()]
    steps = [SimpleNamespace(clause=SimpleNamespace(number=n)) for n in PATHS]
    rewritten: Any = SimpleNamespace(editor=SimpleNamespace(insertions=insertions), steps=steps)
    found: Any = _nearest(rewritten, path)
    assert found.clause.number == clause


def test_nothing_is_named_where_nothing_was_inserted() -> None:
    rewritten: Any = SimpleNamespace(editor=SimpleNamespace(insertions=[]), steps=[])
    assert _nearest(rewritten, "blocks.0") is None
