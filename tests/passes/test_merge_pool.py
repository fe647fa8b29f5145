"""The `merge.pool` pass: pairs of neighbours by hand, facts, figures, bad input."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

import vitrewrite as vr
from tests.lowering.models import fill
from tests.passes.test_merge_tome import image, vit
from tests.refusal import expect_refusal

POOL = importlib.import_module("vitrewrite.passes.merge.pool").PooledPatches
SPEC = "insert merge.pool() after blocks[1].attn\n"


def pairs(height: int, width: int, window: str) -> list[tuple[int, int]]:
    """The patches of each window, window after window."""
    if window == "1x2":
        return [(i, i + 1) for i in range(0, height * width, 2)]
    rows = range(0, height * width, 2 * width)
    return [(i + j, i + j + width) for i in rows for j in range(width)]


@pytest.mark.parametrize("window", ["1x2", "2x1"])
@pytest.mark.parametrize("form", ["avg", "max"])
@pytest.mark.parametrize("sized", [False, True])
def test_it_is_what_the_equations_say(window: str, form: str, sized: bool) -> None:
    x = torch.randn(2, 3 + 24, 5, generator=torch.Generator().manual_seed(0))
    size = torch.arange(1.0, 28).expand(2, -1) if sized else torch.ones(2, 27)
    shape = (1, 2) if window == "1x2" else (2, 1)
    pool = POOL((4, 6), shape, form, traced=True)
    y, count, into, kept = pool(x, size) if sized else pool(x)
    groups = [(i,) for i in range(3)] + [(3 + a, 3 + b) for a, b in pairs(4, 6, window)]
    for n, group in enumerate(groups):
        rows, weight = x[:, group], size[:, group, None]
        mean = (rows * weight).sum(1) / weight.sum(1)
        torch.testing.assert_close(y[:, n], rows.amax(1) if form == "max" else mean)
        assert torch.equal(count[:, n], size[:, group].sum(1))
        assert kept[:, n].tolist() == [group[0]] * 2
        assert all(into[:, i].tolist() == [n] * 2 for i in group)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_no_token_is_lost_in_half_precision(dtype: torch.dtype) -> None:
    x = torch.randn(4, 197, 16).to(dtype)
    y, size = POOL((14, 14))(x)
    assert y.dtype == dtype
    assert torch.equal(size.float().sum(1), torch.full((4,), 197.0))


@pytest.mark.parametrize(
    ("options", "spec"),
    [
        ({"img_size": (20, 24)}, SPEC),
        ({"img_size": (24, 20)}, SPEC.replace("()", '(window="2x1", form=max)')),
        ({"reg_tokens": 3}, SPEC.replace("()", "(prop_attn=true)")),
        ({"class_token": False, "global_pool": "avg"}, SPEC),
    ],
)
def test_grids_and_prefixes(options: dict[str, Any], spec: str) -> None:
    rewritten = vr.apply(spec + "train blocks[0]\n", vit(**options))
    h, w = (n // 4 for n in options.get("img_size", (32, 32)))
    prefix = options.get("reg_tokens", 0) + options.get("class_token", True)
    after = prefix + h * w // 2
    assert rewritten.report["tokens"] == [prefix + h * w] * 2 + [after] * 3
    vr.verify(rewritten, graphs=False)


def test_what_is_left_is_a_grid() -> None:
    more = (
        "insert convpass(hidden=2, dropout=0) at blocks[2].attn_branch\n"
        "insert merge.bdm(dropout=0) after blocks[2].attn\n"
    )
    rewritten = fill(vr.apply(SPEC + more, vit(img_size=(24, 32))))
    assert rewritten.report["tokens"] == [49, 49, 25, 13, 13]
    vr.verify(rewritten, graphs=False)
    with pytest.raises(vr.VitrewriteError, match="is pooled, and does not follow the image"):
        vr.plan(SPEC + more.splitlines()[0] + "\n", vit(dynamic_img_size=True))


def test_pooled_again() -> None:
    again = SPEC + 'insert merge.pool(window="2x1", prop_attn=true) after blocks[2].attn\n'
    assert vr.plan(again, vit()).measures.tokens == (65, 65, 33, 17, 17)
    back = vr.apply(again + "insert unmerge() after blocks[3]\n", vit(global_pool=""))
    y = back.module.eval()(image())[:, 1:].unflatten(1, (4, 2, 4, 2))
    assert torch.equal(y, y[:, :, :1, :, :1].expand_as(y))


def test_figures_of_the_card() -> None:
    for block, giga in ((6, 13.410), (4, 11.933), (2, 10.457), (1, 9.719), (0, 8.981)):
        measures = vr.plan(f"insert merge.pool() after blocks[{block}].attn\n", "vit_base").measures
        assert measures.macs / 1e9 == pytest.approx(giga, abs=1.5e-3)
        assert measures.params.trainable == 0
        assert measures.tokens[block : block + 2] == (197, 99)


BAD = {
    "odd width": (SPEC, {"img_size": (32, 28)}, "VR403", "a grid of 8x7 is no whole number of"),
    "odd height": (
        SPEC.replace("()", '(window="2x1")'), {"img_size": (28, 32)}, "VR403", "windows 2x1",
    ),
    "no grid": (
        "insert merge.tome(r=2) after blocks[0].attn\n" + SPEC, {}, "VR410", "no full grid",
    ),
    "twice": (SPEC * 2, {}, "VR401", "two clauses put merge.pool"),
    "out of range": (SPEC.replace("1]", "4]"), {}, "VR304", "0..3"),
    "window": (SPEC.replace("()", '(window="2x2")'), {}, "VR205", "1x2"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    spec, options, code, words = BAD[name]
    expect_refusal(spec, vit(**options), code, words, how=vr.apply)
