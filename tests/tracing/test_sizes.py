"""Models that take every image size take every image size when they are captured at their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import vitrewrite as vr
from tests.models import spread


class Resized(nn.Module):
    """A table that is resized unless the grid is its own."""

    def __init__(self, way: Callable[..., Any]) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 8, 8), nn.Linear(4, 2)
        self.table = nn.Parameter(torch.randn(1, 4, 4, 4))
        self.way = way

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.way(self, self.conv(x)).mean((2, 3)))
        return found


def resize(table: torch.Tensor, size: Any) -> torch.Tensor:
    return F.interpolate(table, size=tuple(size), mode="bicubic", antialias=True)


def by_statement(m: Any, x: torch.Tensor) -> torch.Tensor:
    table: torch.Tensor = m.table
    if x.shape[-2:] != table.shape[-2:]:
        table = resize(table, x.shape[-2:])
    return x + table


def by_count(m: Any, x: torch.Tensor) -> torch.Tensor:
    h, w = x.shape[-2:]
    own = h * w == m.table[0, 0].numel() and h == w
    table: torch.Tensor = m.table if own else resize(m.table, (h, w))
    return x + table


def one_after_another(m: Any, x: torch.Tensor) -> torch.Tensor:
    h, w = x.shape[-2:]
    rows = m.table.mean(3)
    rows = rows if h == rows.shape[2] else F.interpolate(rows, size=h)
    columns = m.table.mean(2)
    columns = columns if w == columns.shape[2] else F.interpolate(columns, size=w)
    return x + rows[..., None] + columns[:, :, None]


def padded(m: Any, x: torch.Tensor) -> torch.Tensor:
    h = x.shape[2]
    if h != 4:
        x = F.pad(x, (0, 0, 0, 4 - h % 4))
    return x * h


def either(m: Any, x: torch.Tensor) -> torch.Tensor:
    h, w = x.shape[-2:]
    if h > 4 or w > 4:
        x = x - x.mean((2, 3), keepdim=True)
    return x


def in_place(m: Any, x: torch.Tensor) -> torch.Tensor:
    x = x + 0
    y = x.exp() if x.shape[-1] == 4 else x.sin()
    x.add_(m.table if x.shape[-2:] == m.table.shape[-2:] else resize(m.table, x.shape[-2:]))
    x[:, 0] = x[:, 1]
    return x * y


def two_decisions(m: Any, x: torch.Tensor) -> torch.Tensor:
    h, w = x.shape[-2:]
    if h == 4:
        return x + 1 if w == 4 else x - 1
    return x * 2 if w == 4 else x * 3


WAYS = {
    f.__name__: f
    for f in (
        by_statement,
        by_count,
        one_after_another,
        either,
        in_place,
        two_decisions,
    )
}


@pytest.mark.parametrize("way", WAYS)
def test_both_ways_of_a_decision_on_sizes(way: str) -> None:
    torch.manual_seed(0)
    model = Resized(WAYS[way]).eval()
    captured = vr.capture(model, torch.zeros(1, 3, 32, 32))
    for size in ((32, 32), (64, 32), (32, 96), (64, 64), (16, 64), (64, 16), (8, 8)):
        x = torch.randn(2, 3, *size)
        assert torch.equal(captured(x), model(x)), size


def test_ways_that_do_not_meet_again_fix_the_size() -> None:
    model = Resized(padded).eval()
    captured = vr.capture(model, torch.zeros(1, 3, 32, 32))
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(captured(x), model(x))
    with pytest.raises(ValueError, match="captured for 32x32, got 64x32"):
        captured(torch.zeros(1, 3, 64, 32))


def cropped(m: Any, x: torch.Tensor) -> torch.Tensor:
    h, w = x.shape[-2:]
    x = x[:, :, :4] if h > 4 else x
    x = x[..., :4] if w > 4 else x
    found: torch.Tensor = x + m.table
    return found


def decided_later(m: Any, x: torch.Tensor) -> torch.Tensor:
    h, w = x.shape[-2:]
    table = m.table if h == 4 else resize(m.table, (h, 4))
    y: torch.Tensor = table.mean(3, keepdim=True) + x
    k = (3 if w == 4 else 5) if h == 4 else (1 if w == 4 else 2)
    return y * k


@pytest.mark.parametrize("way", [cropped, decided_later])
def test_what_is_decided_after_the_ways_part_is_never_lost(way: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    model = Resized(way).eval()
    captured = vr.capture(model, torch.zeros(1, 3, 32, 32))
    for size in ((32, 32), (64, 32), (32, 96), (64, 64)):
        x = torch.randn(2, 3, *size)
        try:
            found = captured(x)
        except ValueError:
            found = None
        exact = found is not None and torch.equal(found, model(x))
        assert exact or (found is None and size != (32, 32)), size


SMALL: dict[str, Any] = {
    "img_size": 32,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 3,
}


def vision_transformer() -> nn.Module:
    cls = timm.models.vision_transformer.VisionTransformer
    found: nn.Module = cls(**SMALL, patch_size=8, dynamic_img_size=True)
    return found


def eva() -> nn.Module:
    found: nn.Module = timm.models.eva.Eva(
        **SMALL, patch_size=8, use_rot_pos_emb=True, dynamic_img_size=True
    )
    return found


def sam() -> nn.Module:
    found: nn.Module = timm.models.vision_transformer_sam.VisionTransformerSAM(
        **SMALL,
        patch_size=4,
        window_size=4,
        global_attn_indexes=(1,),
        use_rel_pos=True,
        use_abs_pos=True,
        neck_chans=8,
    )
    return found


@pytest.mark.parametrize("make", [vision_transformer, eva, sam])
def test_models_of_timm(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = spread(make())
    captured = vr.capture(model, torch.zeros(1, 3, 32, 32))
    for training in (False, True):
        model.train(training)
        captured.train(training)
        for size in ((32, 32), (64, 32), (32, 48), (16, 64)):
            x = torch.randn(2, 3, *size)
            assert torch.equal(captured(x), model(x)), (training, size)


def test_gradients_are_those_of_the_way_that_is_gone() -> None:
    torch.manual_seed(0)
    model = Resized(by_statement)
    captured = vr.capture(model, torch.zeros(1, 3, 32, 32))
    for size in ((32, 32), (48, 64)):
        x = torch.randn(2, 3, *size)
        want = torch.autograd.grad(model(x).sum(), model.table)
        got = torch.autograd.grad(captured(x).sum(), captured.table)  # type: ignore[arg-type]
        assert torch.equal(want[0], got[0]), size


def test_a_rewritten_model_takes_every_size() -> None:
    torch.manual_seed(0)
    model = spread(vision_transformer()).eval()
    spec = "insert lora(rank=2) at blocks[*].attn.{q, v}\n"
    rewritten = vr.apply(spec, model, example=torch.zeros(1, 3, 32, 32))
    vr.verify(rewritten, graphs=False)
    for size in ((32, 32), (64, 48)):
        x = torch.randn(2, 3, *size)
        assert torch.equal(rewritten.module(x), model(x)), size


def test_a_choice_is_a_statement_and_a_fixed_point() -> None:
    captured = vr.capture(Resized(by_count).eval(), torch.zeros(1, 3, 32, 32))
    text = captured.printed.text  # type: ignore[attr-defined]
    lines = [
        "        if h * w == self.table[0, 0].numel() and h == w:",
        "            table = self.table",
        "        else:",
        "            table = F.interpolate(",
    ]
    assert "\n".join(lines[1:3]) in text
    assert lines[3] in text
    assert " and h == w:" in text
    again = vr.capture(captured, torch.zeros(1, 3, 32, 32))
    assert again.printed.text == text  # type: ignore[attr-defined]
