"""Params, lets, overrides and includes; what a spec is identified by."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.catalogue import CATALOG
from vitrewrite.errors import SpecError, VitrewriteError
from vitrewrite.language import parse_model, parse_override, parse_overrides, parse_spec
from vitrewrite.language.model import Spec

LORA = """
model vit(depth=3)
param rank: int = 8 in 1..64
param mode: str = sum in {sum, gate}
param scale: float = 1
let half = rank // 2
insert lora(rank=half, scale=scale, mode=mode) at blocks[-half:].attn.{q, v}
insert lora() at head
"""


def parse(text: str, **overrides: object) -> Spec:
    return parse_spec(text + "\n", overrides, catalog=CATALOG)


def codes(text: str, **overrides: object) -> list[str]:
    with pytest.raises(VitrewriteError) as caught:
        parse(text, **overrides)
    errors = getattr(caught.value, "errors", [caught.value])
    return [error.code for error in errors]


def options(spec: Spec, clause: int = 0) -> dict[str, object]:
    use = spec.clauses[clause].use
    assert use is not None
    return dict(use.values)


def test_names_get_their_values() -> None:
    spec = parse(LORA)
    assert options(spec) == {"rank": 4, "scale": 1.0, "mode": "sum"}
    assert isinstance(options(spec)["scale"], float)
    assert str(spec.clauses[0].sites) == "blocks[-4:].attn.{q, v}"
    assert spec.params == {"rank": 8, "mode": "sum", "scale": 1}


@pytest.mark.parametrize("rank", ["4", 4, 4.0, "8 // 2", "0.004K"])
def test_overrides_of_params(rank: object) -> None:
    spec = parse(LORA, rank=rank, mode="gate")
    assert options(spec) == {"rank": 2, "scale": 1.0, "mode": "gate"}
    assert spec.params["rank"] == 4


def test_overrides_of_options_reach_all_clauses_of_the_pass() -> None:
    spec = parse_spec(LORA, {"lora.rank": "3", "lora.sizes": [5]}, catalog=CATALOG)
    assert [options(spec, i)["rank"] for i in (0, 1)] == [3, 3]
    assert options(spec, 1)["sizes"] == (5,)
    dotted = parse_spec("insert merge.bdm() at a\n", {"merge.bdm.keep": 2}, catalog=CATALOG)
    assert options(dotted) == {"keep": 2}


def test_overrides_of_settings_and_models() -> None:
    given = {"tune.lr": "0.1", "tune.optimiser": "sgd", "num_classes": "10", "model.foo": True}
    spec = parse_spec(LORA + "tune { lr = 1 }\n", given, catalog=CATALOG)
    assert spec.tune.values == {"lr": 0.1, "optimiser": "sgd"}
    assert spec.model is not None
    assert spec.model.values == {"depth": 3, "foo": True, "num_classes": 10}
    assert [option.name for option in spec.model_overrides] == ["foo", "num_classes"]


def test_override_of_the_model() -> None:
    assert str(parse(LORA, model="hf:a-b(x=3)", seed=3, num_classes=2).model) == (
        "hf:a-b(x=3, num_classes=2)"
    )
    assert codes(LORA, model="a b") == ["VR114"]


def test_a_param_comes_before_an_argument_of_the_model() -> None:
    spec = parse("model vit\nparam depth: int = 2\ntrain blocks[depth]", depth=5)
    assert str(spec.clauses[0].sites) == "blocks[5]"
    assert spec.model is not None
    assert spec.model.values == {}


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"rank": "65"}, "VR203"),
        ({"rank": "four"}, "VR204"),
        ({"rank": True}, "VR204"),
        ({"rank": float("nan")}, "VR204"),
        ({"rank": object()}, "VR204"),
        ({"rank": 10**400}, "VR107"),
        ({"rank": ""}, "VR204"),
        ({"rank": "1 / 0"}, "VR204"),
        ({"mode": "gaet"}, "VR205"),
        ({"rnak": "4"}, "VR218"),
        ({"mode": "\ud800"}, "VR104"),
        ({"lora.sizes": ["\x1b"]}, "VR104"),
        ({"a b": "4"}, "VR219"),
        ({"lora.rnk": "4"}, "VR218"),
        ({"lroa.rank": "4"}, "VR218"),
        ({"merge.bdm.keep": "4"}, "VR218"),
    ],
)
def test_bad_overrides(given: dict[str, object], code: str) -> None:
    assert codes(LORA, **given) == [code]


def test_a_text_is_a_string_where_a_string_is_wanted() -> None:
    text = 'param word: str = "a"\nmodel vit(word = word)'
    for given, value in (("4", "4"), ('"4"', "4"), ("runs/a b.txt", "runs/a b.txt")):
        model = parse(text, word=given).model
        assert model is not None
        assert model.values == {"word": value}


@pytest.mark.parametrize(
    ("settings", "code"),
    [("lrr = 1", "VR202"), ("epochs = -1", "VR203"), ("epochs = 1.5", "VR204"),
     ("optimiser = adamm", "VR209"), ('optimiser = "adamm"', "VR205"), ("lr = none", "VR204")],
)  # fmt: skip
def test_bad_settings(settings: str, code: str) -> None:
    assert codes(f"tune {{ {settings} }}") == [code]
    name, _, value = settings.partition(" = ")
    given = codes("train head", **{f"tune.{name}": value.strip('"')})
    assert given == ["VR205" if code == "VR209" else code]


def test_factors_for_parts() -> None:
    parts = "lr(head + blocks[0:2]) = slow, weight_decay(head) = 0"
    text = f"param slow: float = 0.1\ntune {{ lr = 1, {parts} }}"
    spec = parse(text)
    found = [(f.name, str(f.sites), f.number) for f in spec.tune.factors]
    assert found == [("lr", "head + blocks[0:2]", 0.1), ("weight_decay", "head", 0.0)]
    assert spec.tune.values == {"lr": 1.0}
    assert parse(str(spec)).tune == spec.tune
    assert parse(text, slow=0.5).tune.factors[0].number == 0.5


def test_factors_of_a_spec_hold_over_those_that_it_includes(tmp_path: Path) -> None:
    (tmp_path / "slow.peft").write_text("tune { lr(head) = 0.1 }\n")
    spec = f'include "{tmp_path}/slow.peft"\ntrain head\ntune {{ lr(head) = 10 }}\n'
    assert [factor.number for factor in parse(spec).tune.factors] == [10, 0.1]


@pytest.mark.parametrize(
    ("factor", "code"),
    [("lr(head) = -1", "VR203"), ("lr(head) = none", "VR204"), ("lr(head) = slow", "VR209"),
     ("batch(head) = 2", "VR234"), ("lr(head[3:1]) = 2", "VR214"), ("lr(near()) = 2", "VR215")],
)  # fmt: skip
def test_bad_factors(factor: str, code: str) -> None:
    assert codes(f"tune {{ {factor} }}") == [code]


def test_settings_have_their_types_and_words_need_no_quotes() -> None:
    spec = parse("tune { optimiser = sgd, lr = 1, clip = none, shard = true }")
    assert spec.tune.values == {"optimiser": "sgd", "lr": 1.0, "clip": None, "shard": True}
    assert type(spec.tune.values["lr"]) is float


def test_command_line() -> None:
    assert parse_override(" rank = 4 ") == ("rank", "4")
    assert parse_overrides(["a=b=c", "lora.rank=4"]) == {"a": "b=c", "lora.rank": "4"}
    assert parse_model("vit_base(img_size=2 * 112)").values == {"img_size": 224}
    for text in ("rank", "=4", "a-b=3", "a..b=3", ".=3"):
        with pytest.raises(SpecError, match="no override"):
            parse_override(text)


def test_one_error_for_each_mistake() -> None:
    # A name whose definition is malformed does not count as undefined where it is used.
    assert codes("param rank int = 8\nlet x = rank\ninsert lora(rank=rank) at a") == ["VR118"]
    assert codes("parm rank: int = 8\ninsert lora(rank=rank) at a") == ["VR111"]
    assert codes('param rank: int = "a"\ninsert lora(rank=rank) at a') == ["VR204"]
    assert codes("include nothing\ninsert lora(rank=rank) at a", other=3) == ["VR220"]
    assert codes("let x = y\nlet z = x") == ["VR209"]


def test_errors_come_in_the_order_of_the_text() -> None:
    text = "insert lora(rnk=3) at a\ntrain (\nparam x: itn = 3\ntrain a.3\nrequire foo < 3"
    assert codes(text) == ["VR202", "VR108", "VR224", "VR116", "VR216"]


def test_shipped_include() -> None:
    spec = parse("include base\ntrain head", base_rank=3)
    assert options(spec)["rank"] == 3
    assert spec.clauses[0].span.file.endswith("base.peft")


def test_includes_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "outer.peft").write_text('model a\ninclude "inner/one.peft"\ntrain head\n')
    (tmp_path / "inner" / "one.peft").write_text('model b\ninclude "two.peft"\n')
    (tmp_path / "inner" / "two.peft").write_text("freeze norm\n")
    spec = parse_spec(tmp_path / "outer.peft", catalog=CATALOG)
    assert spec.name == "outer"
    assert [clause.verb for clause in spec.clauses] == ["freeze", "train"]
    assert str(spec.model) == "a"
    assert str(parse_spec(tmp_path / "inner" / "one.peft", catalog=CATALOG).model) == "b"


def test_a_text_has_no_folder_to_include_from() -> None:
    assert codes('include "other.peft"') == ["VR220"]


def test_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.peft").write_text("train head\n")
    assert parse_spec("mine.peft", catalog=CATALOG).name == "mine"
    assert parse_spec("base", catalog=CATALOG).name == "base"
    assert parse_spec("train head", catalog=CATALOG).name == "spec"
    assert parse_spec("# nothing", catalog=CATALOG).clauses == ()
    with pytest.raises(SpecError, match="no spec named 'train'"):
        parse_spec("train", catalog=CATALOG)


def test_hash_depends_on_what_a_spec_means() -> None:
    base = parse(LORA)
    assert parse(f"# note\n{LORA}\n\n").hash == base.hash
    assert parse(LORA.replace("rank // 2", "rank - 4")).hash == base.hash
    assert parse(LORA, rank=10).hash != base.hash
    assert parse(LORA + "train head").hash != base.hash
    assert parse(LORA + "insert lora(rank=8) at x").hash == parse(LORA + "insert lora() at x").hash
    trained, claimed = LORA + "tune { lr = 1e-3 }", LORA + "require params <= 1"
    assert parse(trained, **{"tune.epochs": 3}).hash == parse(claimed).hash == base.hash


def test_warnings() -> None:
    assert [w.code for w in parse("param rank: int = 8\ntrain head").warnings] == ["VR228"]
    assert parse(LORA).warnings == ()
