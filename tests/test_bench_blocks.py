"""`bench --by-block`: the memory of training against the index of the one tuned block."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from tests.test_bench import SETTINGS, applied, tiny
from vitrewrite import bench
from vitrewrite.errors import UsageError
from vitrewrite.report.memory import memory_chart


def test_memory_by_block() -> None:
    """One block keeps what is behind it; clauses about no block are in every model."""
    made = applied(tiny(depth=3))
    found = bench.run_by_block(made, SETTINGS)
    rows = found["by_block"]
    assert list(rows) == ["0", "1", "2", "all", "none"]
    head = 5 * 16 + 5
    assert rows["none"]["trained"] == head
    assert {rows[name]["trained"] for name in "012"} == {head + 2 * 2 * 2 * 16}
    assert rows["all"]["trained"] == head + 3 * 2 * 2 * 2 * 16
    for kind in ("saved_bytes", "peak_bytes"):
        values = [rows[name][kind] for name in ("none", "2", "1", "0", "all")]
        assert values == sorted(values)
    steps = [rows[str(i)]["saved_bytes"] - rows[str(i + 1)]["saved_bytes"] for i in range(2)]
    assert steps[0] == steps[1]
    texts = [t.text or "" for t in ET.fromstring(memory_chart(found)).iter()]
    assert any(text.startswith("all of the spec: ") for text in texts)
    assert "  none " in bench.by_block(found)


def test_where_nothing_else_is_trained() -> None:
    """A clause with sites in blocks and outside of them is carried out at those that there are."""
    spec = "insert lora(rank=2) at every linear in (blocks[1] + head)\n"
    rows = bench.run_by_block(applied(tiny(), spec), SETTINGS)["by_block"]
    assert list(rows) == ["1", "all", "none"]
    assert rows["1"] == rows["all"]
    rows = bench.run_by_block(applied(tiny(), "train every bias\n"), SETTINGS)["by_block"]
    assert list(rows) == ["0", "1", "all", "none"]
    biases = {n: p.numel() for n, p in tiny().named_parameters() if n.endswith("bias")}
    own = sum(v for n, v in biases.items() if n.startswith("blocks.0."))
    assert rows["0"]["trained"] == rows["none"]["trained"] + own
    assert rows["all"]["trained"] == sum(biases.values())
    with pytest.raises(UsageError, match="VR574"):
        bench.run_by_block(applied(tiny(), "train head\n"), SETTINGS)
