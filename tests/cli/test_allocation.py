"""Allocations as data: measured, planned, written, compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.folders import reseal

from .invoke import invoke

SPT = """model tiny.py:build
param budget: int = 1000 in 10..10K

insert lora(rank=1, convention=spt) at optional sensitive(budget=budget, samples=16, scale=10K)
insert sparse() at optional sensitive(budget=budget, samples=16, scale=10K)
train optional sensitive(budget=budget, samples=16, scale=10K)
train cls_token
train head
"""


@pytest.fixture
def profiled(here: Path) -> Path:
    """The current folder with `spt.peft` and `p`, what was measured for it."""
    (here / "spt.peft").write_text(SPT)
    result = invoke("profile", "spt.peft", "data=digits", "--out", "p", "--batch", "8")
    assert (result.status, result.err) == (0, "")
    return here


def test_plan_says_what_the_budget_buys(profiled: Path) -> None:
    result = invoke("plan", "spt.peft", "--profile", "p")
    assert result.status == 0
    lines = result.out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("sensitive("))
    found = invoke("plan", "spt.peft", "--profile", "p", "--json").json
    ((call, allocation),) = found["allocations"].items()
    assert call == "sensitive(budget=1000, samples=16, scale=10000)"
    assert lines[start].startswith(f"{call}: {allocation['total']:,} of 1,000 parameters")
    assert lines[start].endswith("; 32 of them trained anyway")  # the class token
    table = [line.split() for line in lines[start + 1 : start + 7]]
    assert table[0] == ["matrices", "vectors"]
    assert [row[0] for row in table[2:]] == ["0", "1", "other", "all"]
    decisions = allocation["decisions"].values()
    adapted = sum(d["kind"] == "structured" for d in decisions)
    assert table[5][:4] == ["all", str(adapted), "of", "12"]
    spent = sum(d["parameters"] for d in decisions)
    assert table[5][-1] == f"{spent:,}"
    assert spent + 32 == allocation["total"] == found["params"]["trainable_without_head"]
    assert sum(int(row[-1].replace(",", "")) for row in table[2:5]) == spent
    bought = [clause["parameters"] for clause in found["clauses"][:3]]
    assert bought[0] == sum(d["parameters"] for d in decisions if d["kind"] == "structured")
    assert sum(bought) == spent


def test_diff_names_the_decisions_that_changed(profiled: Path) -> None:
    for name, budget in (("a", 1000), ("b", 600)):
        given = ("spt.peft", f"budget={budget}", "--profile", "p")
        assert invoke("apply", *given, "--out", name).status == 0
        Path(f"{name}.json").write_text(invoke("plan", *given, "--json").out)
    assert invoke("diff", "a", "a").out == "no difference\n"
    decisions = [
        json.loads(Path(name, "report.json").read_text())["allocations"].popitem()[1]["decisions"]
        for name in "ab"
    ]
    old, new = decisions
    changed = {n for n in old if old[n]["kind"] != new[n]["kind"]}
    assert changed
    for first, second in (("a", "b"), ("a.json", "b.json")):
        lines = invoke("diff", first, second, "--json").json["differences"]
        start = next(i for i, line in enumerate(lines) if line.startswith("sensitive(budget=1000"))
        assert "-> sensitive(budget=600" in lines[start]
        assert lines[start + 1] == "  budget: 1,000 -> 600"
        named = {line.split(": ")[0].strip(): line.split(": ")[1] for line in lines[start + 1 :]}
        assert changed < set(named)
        name = next(n for n in changed if new[n]["kind"] == "nothing")
        assert named[name].endswith(f"({old[name]['parameters']}) -> nothing")


def test_diff_sees_other_entries(profiled: Path) -> None:
    for name in "ab":  # measured on the way
        assert invoke("apply", "spt.peft", "data=digits", "--out", name).status == 0
    assert invoke("diff", "a", "b").out == "no difference\n"
    lock = json.loads(Path("a/lock.json").read_text())
    (allocation,) = lock["allocations"].values()
    name, decision = next((n, d) for n, d in allocation["decisions"].items() if "entries" in d)
    decision["entries"][0] = max(decision["entries"]) + 1
    Path("b/lock.json").write_text(json.dumps(lock))
    assert invoke("diff", "a", "b").codes == ["VR703"]
    reseal("b")
    lines = invoke("diff", "a", "b", "--json").json["differences"]
    assert lines[-1] == f"  {name}: 1 of {len(decision['entries'])} entries are others"
    decision["kind"] = None
    reseal("b", allocations={"x": 3})
    assert invoke("diff", "a", "b").codes == ["VR703"]
    Path("a.json").write_text("{")
    assert invoke("diff", "a", "a.json").codes == ["VR703"]


def test_the_report_of_a_folder_has_the_picture(profiled: Path) -> None:
    assert invoke("apply", "spt.peft", "--profile", "p", "--out", "a").status == 0
    assert "sensitive entries" in Path("a/plan.md").read_text()
    shown = invoke("show", "sensitivity", "a")
    assert shown.status == 0
    assert "attn.qkv.weight[q]" in shown.out
