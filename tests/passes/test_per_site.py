"""An option that is a list has one value per site; 0 or none: the clause puts nothing there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vitrewrite as vr
from tests.catalogue import CATALOG
from tests.passes.test_drop import IMAGES, vit
from vitrewrite.language import format_text, parse_spec

LORA = "insert lora(rank=[4, 2, 0, 3], dropout=0) at blocks[0:4].attn.q\n"
ONE_BY_ONE = "".join(
    f"insert lora(rank={rank}, dropout=0) at blocks[{i}].attn.q\n"
    for i, rank in ((0, 4), (1, 2), (3, 3))
)


def ranks(rewritten: vr.Rewritten) -> dict[str, int]:
    return {k: v.shape[0] for k, v in rewritten.delta().items() if k.endswith("down")}


def test_it_is_the_same_as_a_clause_for_each_site() -> None:
    rewritten, single = vr.apply(LORA, vit()), vr.apply(ONE_BY_ONE, vit())
    found, expected = rewritten.delta(), single.delta()
    assert ranks(rewritten) == {
        f"blocks.{i}.attn.q.lora.down": r for i, r in ((0, 4), (1, 2), (3, 3))
    }
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert rewritten.measures.params == single.measures.params
    assert rewritten.measures.macs == single.measures.macs


def test_a_plan_shows_the_values_and_where_nothing_is_put() -> None:
    (step,) = vr.plan(LORA, vit()).steps
    assert step.clause.text == (
        "insert lora(rank=[4, 2, none, 3], dropout=0.0) at blocks[0:4].attn.q"
    )
    assert step.sites == tuple(f"blocks[{i}].attn.q" for i in (0, 1, 3))
    assert step.parameters == (4 + 2 + 3) * (16 + 16)


@torch.no_grad()
def test_it_lowers_and_is_verified() -> None:
    text = "insert lora(rank=[4, 2, 1], scale=[0.5, 2, none]) at blocks[1].attn.{q, k, v}\n"
    rewritten = vr.apply(f"{text}train head\nrequire lowers exactly\n", vit())
    model = vit()
    for name, tensor in rewritten.delta().items():
        if "lora" in name:
            tensor.normal_(std=0.3)
            assert ".v." not in name
    delta = rewritten.delta()
    weight = model.blocks[1].attn.qkv.weight
    for start, part, scale in ((0, "q", 0.5), (16, "k", 2.0)):
        up, down = (delta[f"blocks.1.attn.{part}.lora.{n}"] for n in ("up", "down"))
        weight[start : start + 16] += scale * up @ down
    expected = model(IMAGES)
    torch.testing.assert_close(rewritten.module.eval()(IMAGES), expected, rtol=1e-4, atol=1e-5)
    lowered = vr.lower(rewritten)
    torch.testing.assert_close(lowered.module.eval()(IMAGES), expected, rtol=1e-4, atol=1e-5)
    assert list(lowered.module.state_dict()) == list(model.state_dict())


@pytest.mark.slow
def test_all_claims_hold() -> None:
    checks = vr.verify(vr.apply(LORA + "train head\n", vit()))
    assert not [check for check in checks if not check.holds]


def test_an_override_is_a_list_too() -> None:
    text = "param rank: int = 2\ninsert lora(rank=rank) at blocks[0:2].attn.q\n"
    assert set(ranks(vr.apply(vr.parse(text, **{"lora.rank": "[3,1]"}), vit())).values()) == {3, 1}
    text = "param rank: int = 2\ninsert lora(rank=[rank, 2 * rank]) at blocks[0:2].attn.q\n"
    assert set(ranks(vr.apply(vr.parse(text, rank=3), vit())).values()) == {3, 6}


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ("rank=[4, 8, 2]", "VR403", "lora.rank has 3 values, and there are 4 sites"),
        ("rank=[4, 8, 2, 1, 1]", "VR403", "lora.rank has 5 values, and there are 4 sites"),
        ("rank=[4, 8, 2, -1]", "VR203", "lora.rank at site 3 = -1 is out of range"),
        ("rank=[4, 0.5, 2, 1]", "VR204", "lora.rank at site 1 must be an int"),
        ('rank=[4, "a", 2, 1]', "VR204", "lora.rank at site 1 must be an int"),
        ("convention=[spt, vtba, spt, spt]", "VR209", "nothing is named 'vtba'"),
        ("dropout=[0, 0.1, 1, 0]", "VR203", "lora.dropout at site 2 = 1 is out of range"),
        ("rank=[40, 8, 2, 1]", "VR403", "rank"),
    ],
)
def test_lists_that_do_not_fit(options: str, code: str, message: str) -> None:
    with pytest.raises(vr.VitrewriteError, match=code) as caught:
        vr.plan(f"insert lora({options}) at blocks[0:4].attn.q\n", vit())
    assert message in caught.value.message
    assert caught.value.span is not None


def values(text: str) -> dict[str, Any]:
    use = parse_spec(text, catalog=CATALOG).clauses[0].use
    assert use is not None
    return dict(use.values)


def test_zero_is_a_value_where_it_can_be_one() -> None:
    found = values("insert lora(rank=[0, 2], scale=[1, 0], bias=[true, none]) at head\n")
    assert found == {"rank": (None, 2), "scale": (1.0, None), "bias": (True, None)}


def test_an_option_that_is_a_list_has_lists_per_site() -> None:
    assert values("insert lora(sizes=[3, 4]) at head\n") == {"sizes": (3, 4)}
    assert values("insert lora(sizes=[[3], [4, 5], none]) at head\n") == {
        "sizes": ((3,), (4, 5), None)
    }


def test_a_printed_spec_with_lists_means_the_same() -> None:
    spec = parse_spec(LORA)
    again = parse_spec(str(spec))
    assert str(again) == str(spec)
    assert again.hash == spec.hash
    assert format_text("insert lora( rank=[4,0 , none] )at head\n") == (
        "insert lora(rank=[4, 0, none]) at head\n"
    )
