"""Taps of the weights of attention, against timm's attention written out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import vitrewrite as vr
from tests.authored import install
from tests.lowering.models import fill
from tests.models import spread
from tests.sites.by_hand import (
    IMAGES,
    KV,
    MERGE,
    RECEIVED,
    ByHand,
    agree,
    emitted,
    in_both_orders,
    peaked,
    reached,
    swin,
    vit,
)


@pytest.mark.parametrize("tap", ["weights", "weights_per_head"])
def test_weights_are_read_before_dropout(
    tap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"seen_{tap}"
    install(monkeypatch, tmp_path, **{name: RECEIVED.format(name=name, tap=tap)})
    rewritten = fill(vr.apply(f"insert {name}() at blocks[*].attn\n", vit()))
    model = vit()
    peaked(model.blocks, rewritten.delta(), name, mean=tap == "weights")
    agree(rewritten, model)
    if tap == "weights_per_head":
        vr.verify(rewritten, graphs=False)
        reached(rewritten)
        emitted(rewritten, tmp_path / "out")


def test_weights_in_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path, swept=RECEIVED.format(name="swept", tap="weights_per_head"))
    rewritten = fill(vr.apply("insert swept() at every attention\n", swin()))
    model = swin()
    peaked(model.layers[0].blocks, rewritten.delta(), "swept")
    agree(rewritten, model, torch.randn(3, 3, 32, 32))


def test_weights_with_rotary_positions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against EVA-02's own products, read where it drops them."""

    def eva() -> Any:
        torch.manual_seed(0)
        model = timm.models.eva.Eva(
            img_size=16,
            patch_size=4,
            embed_dim=16,
            depth=2,
            num_heads=2,
            num_classes=5,
            use_rot_pos_emb=True,
            swiglu_mlp=True,
            attn_drop_rate=0.3,
        )
        return spread(model)

    install(monkeypatch, tmp_path, turned=RECEIVED.format(name="turned", tap="weights"))
    rewritten = fill(vr.apply("insert turned() at blocks[*].attn\n", eva()))
    model, delta = eva(), rewritten.delta()
    for i, block in enumerate(model.blocks):
        gain, kept = delta[f"blocks.{i}.turned.gain"], list[Any]()
        block.attn.fused_attn = False

        def add(_m: Any, _x: Any, y: Any, gain: Any = gain, kept: Any = kept) -> Any:
            each = kept.pop().mean(1).square().mean((1, 2))
            return y + gain * each[:, None, None]

        block.attn.attn_drop.register_forward_pre_hook(
            lambda _, args, kept=kept: kept.append(args[0])
        )
        block.attn.register_forward_hook(add)
    agree(rewritten, model)


def test_rows_and_merges_in_both_orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reads weights, and what adds keys, or a bias of keys."""
    install(monkeypatch, tmp_path, both=RECEIVED.format(name="both", tap="weights"))
    for other in (KV, MERGE):
        rewritten = in_both_orders("insert both() at blocks[*].attn", other)
        assert rewritten.report["warnings"] == []


def test_rows_beside_keys_are_no_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path, beside=RECEIVED.format(name="beside", tap="weights_per_head"))
    rewritten = fill(vr.apply(f"insert beside() at blocks[*].attn\n{KV}\n", vit()))
    model, delta = vit(), rewritten.delta()
    rows = [delta[f"blocks.{i}.attn.kv_prompt.kv"] for i in range(2)]
    hands = [ByHand(b.attn, rows=r) for b, r in zip(model.blocks, rows, strict=True)]
    peaked(model.blocks, delta, "beside", hands)
    agree(rewritten, model)


def test_prompts_whose_weights_are_read_stay_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, tmp_path, asked=RECEIVED.format(name="asked", tap="weights"))
    spec = "prepend prompt(count=2) to blocks[*]\ninsert asked() at blocks[0].attn\n"
    rewritten = fill(vr.apply(spec, vit()))
    (step, _) = rewritten.result.steps
    assert set(step.waived["lowers_exactly"].values()) == {"the weights of its attention are read"}
    with torch.no_grad():
        found = [m.module.eval()(IMAGES) for m in (rewritten, vr.lower(rewritten))]
    assert torch.equal(*found)
