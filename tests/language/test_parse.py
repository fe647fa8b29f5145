"""What statements mean: nodes, values, spans and how they print."""

from __future__ import annotations

from fractions import Fraction

import pytest

from tests.catalogue import CATALOG
from vitrewrite.errors import ErrorList
from vitrewrite.language import parse_spec
from vitrewrite.language.model import Spec
from vitrewrite.language.selectors import (
    Call,
    Difference,
    Every,
    Intersection,
    ModuleGlob,
    Optional,
    Path,
    Selector,
    Union,
    Where,
)
from vitrewrite.language.values import Value


def parse(text: str, **overrides: object) -> Spec:
    return parse_spec(text + "\n", overrides, catalog=CATALOG)


def selector(text: str) -> Selector:
    sites = parse(f"train {text}").clauses[0].sites
    assert sites is not None
    return sites


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.31M", 310_000),
        ("13.4G", 13_400_000_000),
        ("8K", 8000),
        ("1_000", 1000),
        ("1%", 0.01),
        ("1e-5", 1e-5),
        ("-(2 + 3) * 4 // 3", -7),
        ("- -3", 3),
        ("1 / 3 * 3", 1),
        ("0.1 + 0.2", 0.3),
        ("rank // 2", 4),
        ("true", True),
        ("None", None),
        (r'"a\"b\\"', 'a"b\\'),
        ("'q'", "q"),
        ("[1, 2.5, [true]]", (1, 2.5, (True,))),
        ("[]", ()),
    ],
)
def test_values(text: str, value: Value) -> None:
    spec = parse(f"param rank: int = 8\nmodel vit(a = {text}, b = rank)")
    assert spec.model is not None
    found = spec.model.values["a"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("index", "positions"),
    [
        ("*", range(12)),
        ("5", [5]),
        ("-1", [11]),
        ("0:6", range(6)),
        ("-2:", [10, 11]),
        (":-10", [0, 1]),
        ("0:12:4", [0, 4, 8]),
        ("::5", [0, 5, 10]),
        ("3, 1", [1, 3]),
        ("0:2, 1:4, 11", [0, 1, 2, 3, 11]),
    ],
)
def test_indices(index: str, positions: list[int]) -> None:
    path = selector(f"blocks[{index}]")
    assert isinstance(path, Path)
    assert path.steps[0].index is not None
    assert path.steps[0].index.positions(12) == tuple(positions)


def test_index_beyond_the_end() -> None:
    path = selector("blocks[12]")
    assert isinstance(path, Path)
    assert path.steps[0].index is not None
    with pytest.raises(IndexError, match="12"):
        path.steps[0].index.positions(12)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("stages[2].blocks[*].attn.{q, v}", Path),
        ("every linear", Every),
        ("every linear in blocks[0:6]", Every),
        ('module("blocks.*.attn.qkv")', ModuleGlob),
        ("sensitive(budget=400000, samples=800)", Call),
        ("a + b + c", Union),
        ("a - b", Difference),
        ("a & b & c", Intersection),
        ("a + b where dim >= 384", Where),
        ("optional a where fused", Optional),
    ],
)
def test_selectors(text: str, kind: type) -> None:
    assert isinstance(selector(text), kind)
    assert str(selector(text)) == text


def test_precedence_of_selectors() -> None:
    assert selector("a + b & c") == selector("a + (b & c)")
    assert selector("a - b + c") == selector("(a - b) + c")
    assert selector("every x in a + b") == selector("(every x in a) + b")
    assert selector("optional a where d > 3") == selector("optional (a where d > 3)")


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("dim >= 384", True),
        ("dim > 384", False),
        ("not dim > 384", True),
        ("fused", True),
        ("not not fused", True),
        ("dim < 3 or fused and dim == 384", True),
        ("(dim < 3 or fused) and dim != 384", False),
        ('name == "qkv"', True),
        ("name < 3", False),
        ("dim within 1% of 386", True),
    ],
)
def test_conditions(text: str, holds: bool) -> None:
    where = selector(f"a where {text}")
    assert isinstance(where, Where)
    assert where.condition.holds({"dim": 384, "fused": True, "name": "qkv"}) is holds


@pytest.mark.parametrize(
    ("claim", "measured", "holds"),
    [
        ("trainable <= 0.31M excluding head", 310_000, True),
        ("trainable <= 0.31M excluding head", 310_001, False),
        ("max_error <= 1e-5", 1e-5, True),
        ("params > 3", 3, False),
        ("params >= 3", 3, True),
        ("tokens at blocks[7] == 99", 99, True),
        ("macs within 1% of 13.4G", 13_266_000_000, True),
        ("macs within 1% of 13.4G", 13_265_999_999, False),
        ("macs within 1% of 13.4G", 13_534_000_000.0, True),
        ("max_error < 1", float("nan"), False),
        ("max_error within 100% of 1", float("inf"), False),
        ("identity at init", True, True),
        ("lowers exactly", False, False),
    ],
)
def test_claims(claim: str, measured: float, holds: bool) -> None:
    found = parse(f"require {claim}").requires[0].claim
    assert found.holds(measured) is holds


def test_parts_of_claims() -> None:
    one, two = (
        require.claim
        for require in parse(
            "require trainable <= 3 excluding head\nrequire tokens at blocks[7] == 99"
        ).requires
    )
    assert (one.metric, one.site, str(one.excluding)) == ("trainable", None, "head")
    assert (two.metric, str(two.site), two.excluding) == ("tokens", "blocks[7]", None)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("insert lora(rank=4) at blocks", "insert at"),
        ("insert merge.bdm(keep=1) after blocks[6].attn", "insert after"),
        ("prepend stitch.snnet() to blocks", "prepend"),
        ("add stitch.snnet() to head", "add"),
        ("replace blocks[0].mlp with stitch.snnet()", "replace"),
        ("drop blocks[3]", "drop"),
        ("train head", "train"),
        ("freeze norm", "freeze"),
        ('stitch hf:a/b-1.5, x.py:f(n=3), "odd name" with stitch.snnet()', "stitch"),
    ],
)
def test_clauses(text: str, form: str) -> None:
    clause = parse(text).clauses[0]
    assert clause.form == form
    assert str(clause) == text


def test_models() -> None:
    ref = parse("model vit_base_patch16_224.augreg_in21k(num_classes=10, a=[1])").model
    assert ref is not None
    assert ref.name == "vit_base_patch16_224.augreg_in21k"
    assert ref.values == {"num_classes": 10, "a": (1,)}
    for name in ("hf:mask2former-r50", "./my-models/file.py:make", "hf:org/name-v1.5"):
        assert str(parse(f"model {name}").model) == name
    assert str(parse('model "a b"').model) == '"a b"'


def test_spans() -> None:
    clause = parse("train head\n\n  insert lora(rank=4,\n    scale=2.5) at blocks").clauses[1]
    assert clause.use is not None
    rank, scale = clause.use.options
    assert (str(clause.span), clause.span.end_line) == ("<text>:3:3", 4)
    assert (rank.span.column, rank.value.span.column) == (15, 20)
    assert (scale.value.span.line, scale.value.span.column, scale.value.span.end_column) == (
        *(4, 11),
        14,
    )
    assert scale.value.span.text == "    scale=2.5) at blocks"


def test_words_of_the_language_can_be_options_and_parts_of_paths() -> None:
    assert parse("model vit(in=3, to=4)").model.values == {"in": 3, "to": 4}  # type: ignore[union-attr]
    assert str(selector("blocks.at.with.model")) == "blocks.at.with.model"


def test_statements_go_on_inside_brackets() -> None:
    text = "insert lora(\n  rank=4,  # four\n  sizes=[\n1,\n2,],\n) at (blocks\n + head)\ntrain a"
    assert [str(clause) for clause in parse(text).clauses] == [
        "insert lora(rank=4, sizes=[1, 2]) at blocks + head",
        "train a",
    ]


def test_a_statement_in_an_open_bracket_is_still_checked() -> None:
    with pytest.raises(ErrorList) as caught:
        parse("insert lora(rank=4\ntrain blocks[3")
    assert [error.code for error in caught.value.errors] == ["VR108", "VR108"]


@pytest.mark.parametrize(
    "text", ["train a\r\nfreeze b", "\ufefftrain a\nfreeze b", "train a\rfreeze b"]
)
def test_line_ends_and_marks_of_other_systems(text: str) -> None:
    assert len(parse(text).clauses) == 2


def test_nodes_are_immutable_and_hashable() -> None:
    clause = parse("insert lora(rank=4) at blocks[0].attn").clauses[0]
    assert hash(clause) == hash(parse("insert  lora( rank = 4 ) at blocks[0].attn").clauses[0])
    with pytest.raises(AttributeError):
        clause.verb = "train"  # type: ignore[misc]


def test_numbers_are_exact_until_they_are_used() -> None:
    spec = parse("let third = 1 / 3\nmodel vit(a = third * 3, b = third)")
    assert spec.model is not None
    assert spec.model.options[1].value.value == Fraction(1, 3)  # type: ignore[union-attr]
    assert spec.model.values == {"a": 1, "b": 1 / 3}
