"""Decisions and numbers from tensors whose values no input decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import vitrewrite as vr

SIZES = ((2, 3, 16, 16), (3, 3, 16, 16), (1, 3, 20, 24), (2, 3, 8, 32))


class Model(nn.Module):
    table: torch.Tensor
    scale: torch.Tensor

    def __init__(self, way: Callable[..., Any]) -> None:
        super().__init__()
        self.conv, self.mask = nn.Conv2d(3, 4, 4, 4), Masked()
        self.weights = nn.Parameter(torch.randn(9, 4))
        self.register_buffer("table", torch.arange(5), persistent=False)
        self.register_buffer("scale", torch.ones(2))
        self.plain = torch.tensor([3, 1])
        self.way = way

    def forward(self, x: torch.Tensor) -> Any:
        return self.way(self, self.conv(x))


class Masked(nn.Module):
    """Two calls of one module, on masks of one shape: another program each."""

    def forward(self, mask: torch.Tensor) -> torch.Tensor:
        return mask.clone() if mask.all() else ~mask


def ones(x: torch.Tensor) -> torch.Tensor:
    size = (x.shape[0], *x.shape[2:])
    return torch.ones(size, device=x.device, dtype=torch.bool)


def row_count(x: torch.Tensor) -> torch.Tensor:
    """Sizes in memory that was not set, as detectors keep those of their levels."""
    sizes = torch.empty((2, 2), dtype=torch.long)
    for level in range(2):
        sizes[level, 0], sizes[level, 1] = x.shape[-2] + level, x.shape[-1]
    return sizes[:, 0]


def written(x: torch.Tensor, value: Any) -> torch.Tensor:
    mask = ones(x).float()
    mask[:, :2][0] = value
    return mask


def by_rows(x: torch.Tensor) -> torch.Tensor:
    h, w = x.shape[-2:]
    shapes = torch.as_tensor([(h, w), (h // 2, w // 2)], dtype=torch.long, device=x.device)
    parts = [x[:, :, :a, :b].mean((2, 3)) for a, b in shapes.tolist()]
    return parts[0] + parts[1]


FREE: dict[str, Callable[..., Any]] = {
    "all": lambda m, x: x if ones(x).all() else x * 2,
    "item": lambda m, x: x if ones(x).all().item() else x * 2,
    "any of none": lambda m, x: x * 2 if (~ones(x)).any() else x,
    "resized": lambda m, x: (
        x if F.interpolate(ones(x)[None].float(), size=(7, 7)).bool()[0].all() else x * 2
    ),
    "made empty": lambda m, x: x * row_count(x).max().item(),
    "written into": lambda m, x: x * 2 if written(x, 0.0).all() else x,
    "written with what is not known": lambda m, x: x * 2 if written(x, x[0, 0, :2]).all() else x,
    "a size": lambda m, x: x.flatten(2) * (torch.arange(x.shape[-1]).max().item() + 1),
    "the batch": lambda m, x: x * torch.arange(x.shape[0]).max().item(),
    "list": lambda m, x: by_rows(x),
    "product": lambda m, x: x.flatten(2)[:, :, : torch.tensor(x.shape[-2:]).prod().item()],
    "below": lambda m, x: x * 2 if (torch.arange(x.shape[-1]) < 1000).all() else x,
    "literal": lambda m, x: x * int(torch.tensor(3)) * float(torch.tensor([0.5])),
    "precision": lambda m, x: x * torch.linspace(0, 1, 5, dtype=x.dtype)[3].item(),
    "contains": lambda m, x: x * 2 if 1 in torch.arange(x.shape[-1]) else x,
    "table": lambda m, x: x * m.table.max().item(),
    "attribute": lambda m, x: x * 2 if m.plain.tolist() == [3, 1] else x,
    "module": lambda m, x: x * m.mask(ones(x))[:, None],
}


@pytest.mark.parametrize("way", FREE)
def test_values_that_no_input_decides_are_known(way: str) -> None:
    torch.manual_seed(0)
    model = Model(FREE[way]).eval()
    captured = vr.capture(model, torch.zeros(SIZES[0]))
    for size in SIZES:
        x = torch.randn(size)
        assert torch.equal(captured(x), model(x)), size


def test_what_hangs_on_a_size_is_guarded() -> None:
    model = Model(lambda m, x: x * 2 if (torch.arange(x.shape[-1]) < 6).all() else x).eval()
    captured = vr.capture(model, torch.zeros(SIZES[0]))
    assert torch.equal(captured(torch.ones(SIZES[0])), model(torch.ones(SIZES[0])))
    with pytest.raises(ValueError, match="captured for 16x16, got 8x32"):
        captured(torch.ones(SIZES[3]))


def test_what_a_checkpoint_may_change_is_not_known() -> None:
    model = Model(lambda m, x: x * m.scale.sum().item()).eval()
    with pytest.raises(vr.VitrewriteError, match="decides on the values of a tensor"):
        vr.capture(model, torch.zeros(SIZES[0]))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Masked(), Masked()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = ones(x)
        found: torch.Tensor = x * self.first(mask)[:, None]
        other: torch.Tensor = self.second(torch.zeros_like(mask))
        return found + other[:, None]


def test_equal_modules_that_decide_on_other_values_are_two() -> None:
    model = Twice().eval()
    captured = vr.capture(model, torch.zeros(2, 3, 4, 4))
    x = torch.randn(3, 3, 5, 4)
    assert torch.equal(captured(x), model(x))


INDEXED: dict[str, Callable[..., Any]] = {
    "getitem": lambda m, i: m.weights[i],
    "pair": lambda m, i: m.weights[None, i][0],
    "index_select": lambda m, i: torch.index_select(m.weights, 0, i),
    "gather": lambda m, i: m.weights.gather(0, i[:, None].expand(-1, 4)),
    "embedding": lambda m, i: F.embedding(i, m.weights),
}


@pytest.mark.parametrize("way", INDEXED)
def test_an_index_beyond_a_table_is_a_guard(way: str) -> None:
    index = INDEXED[way]
    model = Model(
        lambda m, x: x + index(m, torch.arange(x.shape[-1], device=x.device)).t()[None, :, None]
    ).eval()
    captured = vr.capture(model, torch.zeros(SIZES[0]))
    x = torch.randn(SIZES[1])
    assert torch.equal(captured(x), model(x))
    with pytest.raises(ValueError, match="captured for 16x16, got 16x64"):
        captured(torch.randn(1, 3, 16, 64))


def test_mvitv2_is_fixed_where_its_tables_end() -> None:
    model = timm.models.mvitv2.MultiScaleVit(
        timm.models.mvitv2.MultiScaleVitCfg(depths=(1, 1), embed_dim=24, num_heads=1),
        img_size=(64, 64),
        num_classes=3,
    ).eval()
    captured = vr.capture(model, torch.zeros(1, 3, 64, 64))
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(captured(x), model(x))
    with pytest.raises(ValueError, match="captured for 64x64, got 96x64"):
        captured(torch.randn(1, 3, 96, 64))


def test_detr_whose_mask_counts_all_pixels() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 32, 64], depths=[1] * 4, out_features=["stage4"]
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=5,
    )
    model = transformers.DetrForObjectDetection(config).eval()
    captured = vr.capture(model, torch.zeros(1, 3, 64, 64))
    for size in ((2, 3, 64, 64), (1, 3, 96, 64)):
        x = torch.randn(size)
        assert torch.equal(captured(x)["logits"], model(x).logits), size
