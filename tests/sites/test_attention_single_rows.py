"""The weights of one query, read beside an attention that stays one fused call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F

import vitrewrite as vr
from tests.authored import install
from tests.lowering.models import fill
from tests.models import spread
from tests.sites.by_hand import (
    IMAGES,
    KV,
    MERGE,
    PAIRS,
    RECEIVED,
    agree,
    emitted,
    in_both_orders,
    reached,
    swin,
    vit,
)
from vitrewrite.tracing.unit import Unit

ROW = "insert {name}() at blocks[*].attn"
WHOLE = 'weights.then("select", 1, 0)'


def fused(rewritten: Any) -> int:
    """How many calls of SDPA there are."""
    units = [m for m in rewritten.module.modules() if isinstance(m, Unit) and m.template]
    nodes = [n for unit in units for n in unit.program.nodes]
    return sum(n.target is F.scaled_dot_product_attention for n in nodes)


def beit() -> Any:
    torch.manual_seed(0)
    model = timm.models.beit.Beit(
        img_size=16,
        patch_size=4,
        embed_dim=16,
        depth=2,
        num_heads=2,
        num_classes=5,
        use_rel_pos_bias=True,
    )
    return spread(model)


def pair(name: str, other: str, model: Any, tmp_path: Path, patch: pytest.MonkeyPatch) -> Any:
    """Two models at equal tensors: one reads the row alone, one reads it off all the weights."""
    taps = {f"{name}_row": "weights_of(0)", f"{name}_all": WHOLE}
    texts = {n: RECEIVED.format(name=n, tap=tap) for n, tap in taps.items()}
    install(patch, tmp_path, **texts, **({"pairs": PAIRS.format(name="pairs")}))
    made = [vr.apply(f"{ROW.format(name=n)}\n{other}\n", model()) for n in taps]
    first, second = fill(made[0]).delta(), made[1].delta()
    for key, tensor in second.items():
        tensor.copy_(first[key.replace("_all", "_row")])
    return made


@pytest.mark.parametrize(
    "other", ["", KV, MERGE, f"{KV}\n{MERGE}", "insert pairs() at blocks[*].attn"]
)
def test_it_is_a_row_of_the_weights(
    other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "x" + "".join(c for c in other if c.isalpha())[:30]
    row, whole = pair(name, other, vit, tmp_path, monkeypatch)
    assert (fused(row), fused(whole)) == (2, 0)
    agree(row, whole.module)
    with torch.no_grad():
        lowered = [vr.lower(each).module.eval()(IMAGES) for each in (row, whole)]
    torch.testing.assert_close(*lowered, rtol=1e-4, atol=1e-5)
    if not other:
        vr.verify(row, graphs=False)
        reached(row)
        emitted(row, tmp_path / "out")


def test_with_a_bias_of_positions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row, whole = pair("placed", "", beit, tmp_path, monkeypatch)
    assert fused(row) == 2
    agree(row, whole.module)


def test_both_orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {
        "late": RECEIVED.format(name="late", tap="weights_of(0)"),
        "all_of_it": RECEIVED.format(name="all_of_it", tap="weights"),
    }
    install(monkeypatch, tmp_path, **texts)
    for other in (KV, MERGE, "insert all_of_it() at blocks[*].attn"):
        rewritten = in_both_orders(ROW.format(name="late"), other)
        assert rewritten.report["warnings"] == []


def test_windows_have_no_such_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path, none=RECEIVED.format(name="none", tap="weights_of(0)"))
    with pytest.raises(vr.VitrewriteError, match="one sequence of tokens"):
        vr.apply("insert none() at every attention\n", swin())


def test_weights_received(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taps = {"got": "received", "got_all": 'weights.then("mean", 1)'}
    install(monkeypatch, tmp_path, **{n: RECEIVED.format(name=n, tap=t) for n, t in taps.items()})
    made = [vr.apply(f"{ROW.format(name=n)}\n{KV}\n", vit()) for n in taps]
    first = fill(made[0]).delta()
    for key, tensor in made[1].delta().items():
        tensor.copy_(first[key.replace("got_all", "got")])
    agree(made[0], made[1].module)
