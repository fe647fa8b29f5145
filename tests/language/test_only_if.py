"""`if CONDITION` at the end of clauses and claims, and `include` with values of params."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.catalogue import CATALOG
from vitrewrite.errors import SpecError, VitrewriteError
from vitrewrite.language import format_text, parse_spec
from vitrewrite.language.model import Spec

PARAMS = """
param rank: int = 8 in 0..64
param scale: float = 0.5
param deep: bool = true
param mode: str = sum in {sum, gate, off}
let half = rank // 2
"""


def parse(text: str, **overrides: object) -> Spec:
    return parse_spec(PARAMS + text + "\n", overrides, catalog=CATALOG)


def errors(text: str, **overrides: object) -> list[SpecError]:
    with pytest.raises(VitrewriteError) as caught:
        parse(text, **overrides)
    return getattr(caught.value, "errors", [caught.value])


TRUE = (
    *("rank > 0", "rank == 8", "rank != 9", "deep", "not not deep"),
    *("mode == sum", 'mode == "sum"', "mode != gate", "half >= 4 and half <= rank / 2"),
    *("scale == 1 / 2", "scale == 0.5", "rank within 10% of 8.5", "deep == true"),
    *("rank < 3 or mode == sum", "not (rank < 3 or mode == off)", "scale < rank and deep"),
)
FALSE = (
    *("rank > 8", "not deep", "mode == off", "rank == 8 and (not deep)", "scale == 0.25"),
    *("mode == gate or mode == off", "deep == false", "not (deep and rank == 8)"),
)


@pytest.mark.parametrize("condition", TRUE)
def test_a_clause_is_there_if_its_condition_holds(condition: str) -> None:
    spec = parse(f"train head if {condition}")
    assert [str(c) for c in spec.clauses] == ["train head"]
    assert spec.absent == ()


@pytest.mark.parametrize("condition", FALSE)
def test_a_clause_is_not_there_if_its_condition_does_not_hold(condition: str) -> None:
    spec = parse(f"train head if {condition}\ntrain norm")
    assert [str(c) for c in spec.clauses] == ["train norm"]
    assert [str(each.statement) for each in spec.absent] == [f"train head if {condition}"]
    assert spec.hash == parse("train norm").hash


@pytest.mark.parametrize(
    "statement",
    [
        "insert lora(rank=4) at blocks[*].attn.{q, v}",
        "insert lora(rank=4) at blocks[*].attn where dim > 3 and depth < 2",
        "insert merge.bdm(keep=3) after optional blocks[6].attn",
        "replace blocks[0] with stitch.snnet()",
        "stitch a, b(depth=3) with stitch.snnet()",
        "drop blocks[8:]",
        "train head",
        "freeze norm + head",
        "require trainable <= 0.31M excluding head",
        "require tokens at blocks[7] == 99",
        "require macs within 1% of 13.4G",
        "require identity at init",
    ],
)
def test_every_clause_and_claim_takes_a_condition(statement: str) -> None:
    spec = parse(f"{statement} if rank == 8")
    assert str(spec) == str(parse(statement))
    without = parse(f"{statement} if rank == 9")
    assert not without.clauses
    assert not without.requires
    printed = str(without.absent[0].statement)
    assert printed.endswith(" if rank == 9")
    assert str(parse(printed, rank=9)) == str(parse(statement))


def test_what_is_not_there_is_told_with_the_values() -> None:
    spec = parse("drop blocks[8:] if deep and rank > 8 or mode == gate")
    assert str(spec.absent[0]) == (
        "not there  line 7: drop blocks[8:] if (deep and rank > 8) or mode == gate "
        '(deep = true, rank = 8, mode = "sum")'
    )
    assert spec.absent_json["not_there"][0]["values"] == {"deep": True, "rank": 8, "mode": "sum"}


def test_overrides_decide() -> None:
    text = "insert lora(rank=rank) at blocks[0].attn if rank > 0"
    assert len(parse(text).clauses) == 1
    assert parse(text, rank="0").clauses == ()


def test_a_clause_that_is_not_there_may_have_values_that_nothing_takes() -> None:
    text = (
        "insert lora(rank=rank, mode=mode, scale=1 / rank) at blocks[0:rank] "
        "if rank > 0 and mode != off"
    )
    assert parse(text, rank=0).clauses == ()
    assert parse(text, mode="off").clauses == ()
    assert parse(text).clauses != ()
    assert parse("require params <= 1 / rank if rank > 0", rank=0).requires == ()


def test_names_in_a_clause_that_is_not_there_are_checked() -> None:
    found = errors(
        "insert lora(rnak=4) at blocks[0] if not deep\n"
        "insert loar() at blocks[0] if not deep\n"
        "insert lora(rank=rakn) at blocks[0] if not deep\n"
        "require parms <= 3 if not deep"
    )
    assert [error.code for error in found] == ["VR202", "VR201", "VR209", "VR216"]


@pytest.mark.parametrize(
    ("condition", "code", "message", "help_", "caret"),
    [
        ("rnak > 3", "VR209", "nothing is named 'rnak'", "did you mean 'rank'?", "rnak"),
        ("rank > hlaf", "VR209", "nothing is named 'hlaf'", "did you mean 'half'?", "hlaf"),
        ("mode == gaet", "VR209", "nothing is named 'gaet'", "did you mean 'gate'?", "gaet"),
        ('mode == "gaet"', "VR205", "mode cannot be 'gaet'", "did you mean 'gate'?", '"gaet"'),
        (
            "rank",
            "VR204",
            "'rank' is 8, which is neither true nor false",
            "compare it, as in 'if rank == 8'",
            "rank",
        ),
        (
            "mode > 3",
            "VR204",
            "'mode' is str \"sum\", and only numbers have an order",
            "use == or !=",
            "mode",
        ),
        ("rank > deep", "VR204", "the bound must be a number, got bool true", None, "deep"),
        (
            "rank == none",
            "VR204",
            "'rank' is int 8, and none none never equals it",
            None,
            "none",
        ),
        ("rank == 1 / 0", "VR213", "division by zero", None, "0"),
        ("dim > 3", "VR209", "nothing is named 'dim'", None, "dim"),
    ],
)
def test_conditions_that_make_no_sense(
    condition: str, code: str, message: str, help_: str | None, caret: str
) -> None:
    (found,) = errors(f"train head if {condition}")
    assert (found.code, found.message) == (code, message)
    if help_:
        assert found.suggestion == help_
    assert found.span is not None
    assert found.span.text[found.span.column - 1 : found.span.end_column - 1] == caret


def test_a_malformed_param_in_a_condition_is_one_error() -> None:
    found = errors("param odd: int = \ntrain head if odd > 3")
    assert [error.code for error in found] == ["VR118"]


def test_the_formatter_keeps_conditions() -> None:
    messy = "train   head  if   not( rank>3 )and deep # why\n"
    assert format_text(messy) == "train head if not (rank > 3) and deep  # why\n"


# -- include ---------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    text = PARAMS + "insert lora(rank=rank, mode=mode) at blocks[0].attn if rank > 0\n"
    (tmp_path / "base.peft").write_text(text)
    (tmp_path / "mid.peft").write_text('include "base.peft"(rank=2, mode=gate)\n')
    return tmp_path


def read(folder: Path, text: str, **overrides: object) -> Spec:
    (folder / "own.peft").write_text(text + "\n")
    return parse_spec(folder / "own.peft", overrides, catalog=CATALOG)


def test_an_include_gives_params_their_values(folder: Path) -> None:
    spec = read(folder, 'let n = 2\ninclude "base.peft"(rank=n + 1, mode=gate)')
    assert spec.params["rank"] == 3
    assert str(spec.clauses[0].use) == 'lora(rank=3, mode="gate")'
    assert read(folder, 'include "base.peft"(rank=0)').clauses == ()


def test_the_outer_include_and_the_command_line_hold(folder: Path) -> None:
    assert read(folder, 'include "mid.peft"(rank=5)').params["rank"] == 5
    assert read(folder, 'include "mid.peft"(rank=5)').params["mode"] == "gate"
    assert read(folder, 'include "mid.peft"(rank=5)', rank="6").params["rank"] == 6


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ("rnak=3", "VR218", "'base.peft' has no param 'rnak'"),
        ("half=3", "VR218", "'base.peft' has no param 'half'"),
        ("rank=100", "VR203", "rank = 100 is out of range: 0..64"),
        ("mode=gaet", "VR209", "nothing is named 'gaet'"),
        ("rank=3, rank=4", "VR207", "'rank' is given twice"),
        ('rank="a"', "VR204", 'rank must be an int, got str "a"'),
    ],
)
def test_includes_that_set_what_cannot_be(
    folder: Path, options: str, code: str, message: str
) -> None:
    with pytest.raises(VitrewriteError) as caught:
        read(folder, f'include "base.peft"({options})')
    found = getattr(caught.value, "errors", [caught.value])
    assert [(error.code, error.message) for error in found] == [(code, message)]
    assert found[0].span.file.endswith("own.peft")
