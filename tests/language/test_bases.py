"""Specs about several models: names of bases, and selectors that start at one."""

from __future__ import annotations

import pytest

from tests.catalogue import CATALOG
from vitrewrite.errors import VitrewriteError
from vitrewrite.language import Spec, parse_spec

STITCH = "stitch small=vit_small, base=vit_base(depth=3) with stitch.snnet()\n"


def parse(text: str, **overrides: object) -> Spec:
    return parse_spec(text, overrides, catalog=CATALOG)


def test_names() -> None:
    named = parse(STITCH)
    assert {name: ref.name for name, ref in named.bases.items()} == {
        "small": "vit_small",
        "base": "vit_base",
    }
    assert str(parse(str(named))) == str(named)
    assert list(parse("stitch m, n, x.py:f with stitch.snnet()\n").bases) == ["a", "b", "c"]
    assert list(parse("stitch m, large=n with stitch.snnet()\n").bases) == ["a", "large"]
    assert parse("model m\n").bases == {}


@pytest.mark.parametrize(
    "selector",
    [
        "small.blocks[*].attn.{q, v}",
        "{small, base}.head",
        "every base",
        "every base.blocks[1:].mlp.fc1 + small.norm",
        "every linear in (every base)",
        "every linear in small",
        "optional every base.blocks[9]",
        "every linear",
        'module("small.blocks.*")',
        "every base.blocks[*] where index > 1",
    ],
)
def test_selectors_that_start_at_a_base(selector: str) -> None:
    spec = parse(f"{STITCH}train {selector}\n")
    assert str(parse(str(spec))) == str(spec)
    assert str(spec.clauses[-1]) == f"train {selector}"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"{STITCH}train blocks[0]\n", "VR504 'blocks' is no base"),
        (f"{STITCH}train {{small, head}}.norm\n", "VR504 'head' is no base"),
        (f"{STITCH}require trainable <= 1M excluding head\n", "VR504 'head' is no base"),
        (f"{STITCH}tune {{ lr(blocks[0]) = 0.5 }}\n", "VR504 'blocks' is no base"),
        ("train every base\n", "VR505 'every base' is of specs that stitch"),
        ("train every linear.norm\n", "VR505 'every linear' is followed by no path"),
        ("stitch x=m, x=n with stitch.snnet()\n", "VR506 two bases are named 'x'"),
        ("stitch blocks=m, n with stitch.snnet()\n", "VR506 a base cannot be named 'blocks'"),
        (f"{STITCH}{STITCH}", "VR507 a second 'stitch'"),
        (f"model m\n{STITCH}", "VR507 'stitch' names the models itself"),
        (f"{STITCH}insert lora(rank=1) at sensitive(budget=1K)\n", "VR513 'sensitive()'"),
    ],
)
def test_what_is_wrong(text: str, told: str) -> None:
    with pytest.raises(VitrewriteError) as caught:
        parse(text)
    assert told in str(caught.value)


def test_overrides_of_models() -> None:
    with pytest.raises(VitrewriteError, match="VR507 the spec stitches models that it names"):
        parse(STITCH, model="vit_tiny")
    spec = parse(STITCH, num_classes=7)
    assert {str(ref) for ref in spec.bases.values()} == {
        "small=vit_small(num_classes=7)",
        "base=vit_base(depth=3, num_classes=7)",
    }
