"""`macs=`: what a clause chooses to meet a cost, and what it says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

import vitrewrite as vr

TINY = "test_vit"
EVERY = "insert merge.tome(macs={}) after blocks[*].attn\n"
ONE = "insert merge.bdm(macs={}, prop_attn=false) after blocks[1:].attn\n"


def test_the_block_is_the_one_that_comes_nearest() -> None:
    """Each block's own cost, and what lies between two, is met by the nearest."""
    stated = {
        i: vr.plan(f"insert merge.bdm() after blocks[{i}].attn\n", TINY).measures.macs
        for i in (3, 4)
    }
    between = (3 * stated[4] + stated[3]) // 4
    for asked, block in ((stated[3], 3), (stated[4], 4), (between, 4)):
        plan = vr.plan(ONE.format(asked), TINY)
        assert plan.steps[0].sites == (f"blocks[{block}].attn",)
        assert plan.measures.macs == stated[block]
    (aim,) = plan.aims
    assert aim.chosen == f"insert merge.bdm(prop_attn=false) after blocks[{block}].attn"
    assert str(aim) in str(plan)
    assert plan.to_json()["aims"][0]["reached"] == stated[4]


def test_the_number_is_the_one_that_comes_nearest() -> None:
    """What two numbers of pairs cost surrounds what is asked."""
    costs = [
        vr.plan(f"insert merge.tome(r={r}) after blocks[*].attn\n", TINY).measures.macs
        for r in (7, 8, 9)
    ]
    asked = costs[1] + (costs[0] - costs[1]) // 3
    plan = vr.plan(EVERY.format(asked), TINY)
    assert plan.measures.macs == costs[1]
    assert "merge.tome(r=8)" in str(plan)


def test_a_folder_has_what_was_chosen(tmp_path: Path) -> None:
    """Other clauses count in the cost; what is written down is the choice."""
    more = "model test_vit\ninsert adaptformer() at blocks[*].mlp_branch\n"
    asked = vr.plan(f"{more}insert merge.bdm() after blocks[3].attn\n").measures.macs
    made = vr.apply(f"{more}insert merge.bdm(macs={asked}) after blocks[*].attn\n")
    assert made.report["macs"] == asked
    vr.emit(made, tmp_path / "out")
    assert "merge.bdm() after blocks[3].attn" in (tmp_path / "out/lock.json").read_text()


@pytest.mark.parametrize(
    ("spec", "code", "text"),
    [
        (EVERY.format("90G"), "VR471", "within reach: 0.0"),
        (EVERY.format("1M"), "VR471", "1.000 M MACs are out of reach"),
        (EVERY.format("1G") + ONE.format("1G"), "VR470", "both aim at a cost"),
    ],
)
def test_what_is_refused(spec: str, code: str, text: str) -> None:
    """A cost that nothing meets, with both ends of what is; two that ask for one."""
    with pytest.raises(vr.VitrewriteError, match=rf"(?s){code}.*{text}"):
        vr.plan(spec, TINY)
