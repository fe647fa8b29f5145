"""Options without effect are told where they stand."""

from __future__ import annotations

from pathlib import Path

import pytest

import vitrewrite as vr
from vitrewrite import catalog
from vitrewrite.catalog import Catalog
from vitrewrite.catalog.needs import holds, names_in
from vitrewrite.language import parse_spec

IDLE = [
    ("insert lora(rank_stabilised=true) at blocks[0].attn.q", "lora.rank_stabilised", 13),
    ("prepend prompt(segments=4) to blocks[*]", "prompt.segments", 16),
    ("prepend prompt(layout=contiguous) to blocks[*]", "prompt.layout", 16),
    ("prepend prompt(masks=true, segments=1, layout=contiguous) to blocks[*]", "prompt.layout", 40),
    ("prepend prompt(masks=true, importance=absolute) to blocks[*]", "prompt.importance", 28),
    ("add hrca(cells=all, omega=4) to decoder", "hrca.omega", 21),
    ("add dfpq(queries=learned, pool=foreground) to decoder", "dfpq.pool", 27),
    ("add dfpq(queries=grid_anchor, pool=foreground) to decoder", "dfpq.pool", 31),
]


@pytest.mark.parametrize(("clause", "option", "column"), IDLE)
def test_an_option_without_effect_is_told_where_it_stands(
    clause: str, option: str, column: int
) -> None:
    (warning,) = parse_spec(f"{clause}\n").warnings
    assert (warning.code, warning.message.split()[0]) == ("VR230", option)
    assert warning.span is not None
    assert (warning.span.line, warning.span.column) == (1, column)
    assert "^^^" in warning.render()


def test_in_a_selector_it_is_an_error() -> None:
    with pytest.raises(vr.VitrewriteError, match=r":1:43: VR230 sensitive.beta has no effect"):
        parse_spec("train sensitive(budget=4K, vectors=false, beta=3)\n")


@pytest.mark.parametrize(
    "clause",
    [
        "insert lora(convention=library, alpha=8, rank_stabilised=true) at blocks[0].attn.q",
        "insert lora(rank_stabilised=false) at blocks[0].attn.q",
        "prepend prompt(masks=true, segments=4, layout=contiguous) to blocks[*]",
        "prepend prompt(segments=8) to blocks[*]",
        "prepend prompt(masks=true, prune_tokens=[10], importance=absolute) to blocks[*]",
        "add dfpq(pool=foreground) to decoder",
    ],
)
def test_one_with_an_effect_or_at_its_default_is_none(clause: str) -> None:
    assert not parse_spec(f"{clause}\n").warnings


def test_settings_of_tune_are_warned_about() -> None:
    tune = "momentum = 0.5, schedule = constant, min_lr = 1e-5, epochs = 3, steps = 4"
    spec = f"train head\ntune {{ {tune} }}\n"
    found = [warning.message.split()[0] for warning in parse_spec(spec).warnings]
    assert found == ["tune.momentum", "tune.min_lr", "tune.epochs"]
    assert not parse_spec(
        "train head\ntune { optimiser = sgd, momentum = 0.5, epochs = 3 }\n"
    ).warnings


def test_what_depends_on_the_site_is_a_warning() -> None:
    tiny = "model vit_tiny_patch16_224(depth=2, embed_dim=24, num_heads=3, img_size=32)\n"
    for clause, message in (
        ("insert adapter(hidden=2, dropout=0.5) at blocks[*].attn.proj", "adapter.dropout has no"),
        ("insert merge.bdm(prop_attn=false) after blocks[1].attn", "merge.bdm.prop_attn has no"),
    ):
        assert any(message in w for w in vr.plan(f"{tiny}{clause}\n").warnings)
        assert not any(
            "no effect" in w
            for w in vr.plan(
                tiny + clause.split("(")[0] + "()" + clause.split(")")[1] + "\n"
            ).warnings
        )


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        ("n >", "no condition"),
        ("f(n)", "no condition: a Call"),
        ("other > 1", "has 'other'; options: n, m"),
        ("n.real > 1", "no condition: a Attribute"),
    ],
)
def test_conditions_that_are_none(needs: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from vitrewrite.authoring import Pass, option\nclass Mine(Pass):\n    n: int = 1\n"
        f"    m: int = option(2, needs={needs!r})\n"
    )
    with pytest.raises(vr.VitrewriteError, match=f"mine.py:4:5: VR240 .*needs of m .*{message}"):
        Catalog((tmp_path,), ()).signature("mine")


def test_conditions() -> None:
    assert names_in("masks and segments > 1") == {"masks", "segments"}
    assert holds("not many or kind in ('a', 'b')", {"many": True, "kind": "a"})
    assert not holds("steps is None", {"steps": 3})


def test_the_page_of_a_pass_says_what_options_need() -> None:
    assert catalog.signature("prompt").options["segments"].needs == "masks"
